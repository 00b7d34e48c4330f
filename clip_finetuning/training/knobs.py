"""The knobs of a training by name, for whoever reads them before anything heavy is loaded."""

MODEL = ["MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR"]
IMAGE = ["IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION"]
DATA = ["TRAIN_DATASET_PATTERN", "VALID_DATASET_PATTERN", "NUM_WORKERS"]
# A resumed run with another value of one of these would no longer be the same training.
MATHEMATICAL = [
    "BATCH_SIZE", "VIEWS", "REDUCED_DECODE", "SEED", "PRECISION", "LOSS", "OPTIMIZER", "LEARNING_RATE", "LR_SCHEDULE",
    "WARMUP_STEPS", "WEIGHT_DECAY", "BETA1", "BETA2", "EPS", "GRAD_CLIP_NORM", "EMA_DECAY", *IMAGE,
]  # fmt: skip
OTHERS = [
    "EPOCHS", "MAX_STEPS", "DEVICE", "MICRO_BATCH_SIZE", "GRAD_CHECKPOINTING", "CHECKPOINT_DIR", "CHECKPOINT_INTERVAL",
    "KEEP_CHECKPOINTS", "RESUME", "EVAL_INTERVAL", "PATIENCE", "LOG_INTERVAL", "TENSORBOARD",
]  # fmt: skip
ALL = [*MODEL, *DATA, *MATHEMATICAL, *OTHERS]
FIXED = ["LOSS", "OPTIMIZER"]  # they decide what a checkpoint holds
# Must be the same for all processes; paths may differ between machines.
SHARED = [*MATHEMATICAL, "EPOCHS", "MAX_STEPS", "MICRO_BATCH_SIZE", "EVAL_INTERVAL", "PATIENCE"]
# A resumed run takes these from its checkpoint where the settings leave them open, as here.
OPEN = {"PRECISION": "auto", "OPTIMIZER": "auto", "LEARNING_RATE": None, "WARMUP_STEPS": None, **dict.fromkeys(IMAGE)}

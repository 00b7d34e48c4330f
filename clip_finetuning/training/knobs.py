"""The knobs of a training by name, and which of their values contradict each other: known before anything is loaded."""

from collections.abc import Mapping
from typing import Any

MODEL = ["MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR"]
IMAGE = ["IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION"]
PATTERNS = ["TRAIN_DATASET_PATTERN", "VALID_DATASET_PATTERN", "RETENTION_DATASET_PATTERN"]
DATA = [*PATTERNS, "NUM_WORKERS"]
LORA = ["TUNE", "LORA_RANK", "LORA_ALPHA", "LORA_DROPOUT", "LORA_TARGETS"]
# A resumed run with another value of one of these would no longer be the same training.
MATHEMATICAL = [
    "BATCH_SIZE", "VIEWS", "REDUCED_DECODE", "SEED", "PRECISION", "LOSS", "OPTIMIZER", "LEARNING_RATE", "LR_SCHEDULE",
    "WARMUP_STEPS", "WEIGHT_DECAY", "BETA1", "BETA2", "EPS", "GRAD_CLIP_NORM", "EMA_DECAY", "CAPTION_KEY", "PRODUCT_KEY", *IMAGE,
    "CROP_SCALE", "FLIP", *LORA, "LAYER_DECAY", "IMAGE_RATE", "TEXT_RATE", "ANCHOR", "START_SHARE", "FIT_TEMPERATURE",
    "WARM_STATISTICS",
]  # fmt: skip
OTHERS = [
    "EPOCHS", "MAX_STEPS", "DEVICE", "MICRO_BATCH_SIZE", "GRAD_CHECKPOINTING", "CHECKPOINT_DIR", "CHECKPOINT_INTERVAL",
    "KEEP_CHECKPOINTS", "KEEP", "RESUME", "EVAL_INTERVAL", "PATIENCE", "LOG_INTERVAL", "TENSORBOARD",
]  # fmt: skip
ALL = [*MODEL, *DATA, *MATHEMATICAL, *OTHERS]
FIXED = ["LOSS", "OPTIMIZER", "TUNE"]  # they decide what a checkpoint holds
# Must be the same for all processes; paths may differ between machines.
SHARED = [*MATHEMATICAL, "EPOCHS", "MAX_STEPS", "MICRO_BATCH_SIZE", "EVAL_INTERVAL", "PATIENCE", "KEEP"]
# These values leave open what the run is to do: a new one decides, a resumed one does as its checkpoint says.
OPEN = {
    "PRECISION": "auto",
    "OPTIMIZER": "auto",
    "LEARNING_RATE": None,
    "WARMUP_STEPS": None,
    "ANCHOR": None,
    "START_SHARE": None,
    **dict.fromkeys(IMAGE),
}


def contradictions(values: Mapping[str, Any], processes: int = 1) -> list[str]:
    """What is wrong with settings by themselves, a sentence each: known before a model is built."""
    batch_size, micro = values["BATCH_SIZE"], values["MICRO_BATCH_SIZE"]
    found = []
    if batch_size == 1:
        found.append("BATCH_SIZE=1 teaches nothing, since samples are contrasted with each other: set it to 2 or more")
    if micro is not None and micro > batch_size:
        found.append(f"MICRO_BATCH_SIZE={micro} exceeds BATCH_SIZE={batch_size}, of which it is a part")
    if values["PATIENCE"] is not None and values["EVAL_INTERVAL"] is None:
        found.append("PATIENCE counts evaluations, but EVAL_INTERVAL is none: set EVAL_INTERVAL too")
    retention = values["RETENTION_DATASET_PATTERN"] is not None
    if values["KEEP"] == "both" and not retention:
        found.append(
            "KEEP=both needs shards of what the model knew before: set RETENTION_DATASET_PATTERN, or KEEP=gain"
        )
    if retention and values["EVAL_INTERVAL"] is None:
        found.append(
            "RETENTION_DATASET_PATTERN is measured at evaluations, but EVAL_INTERVAL is none: set EVAL_INTERVAL too"
        )
    if batch_size % processes:
        found.append(f"BATCH_SIZE={batch_size} does not divide among {processes} processes; make it a multiple")
    return found + _of_tuning(values)


def _of_tuning(values):
    """What is wrong with what trains: nothing does, or a rate is for what does not."""
    tune, towers = values["TUNE"], ("image", "text")
    rates = {tower: values[f"{tower.upper()}_RATE"] for tower in towers}
    trained = [tower for tower in towers if tune not in towers or tune == tower]
    found = []
    if not any(rates[tower] for tower in trained):
        names = [f"{tower.upper()}_RATE" for tower in trained]
        zeros = " and ".join(f"{name}=0" for name in names)
        found.append(f"TUNE={tune} with {zeros} leaves nothing to train: set {' or '.join(names)} above 0")
    for tower in set(towers).difference(trained):
        name, rate = f"{tower.upper()}_RATE", rates[tower]
        if rate not in (0, 1):
            found.append(f"{name}={rate:g} changes nothing, since TUNE={tune} locks the {tower} tower: leave it at 1")
    if tune == "head" and values["LAYER_DECAY"] != 1:
        decay = values["LAYER_DECAY"]
        found.append(f"LAYER_DECAY={decay:g} changes nothing, since TUNE=head trains no block: leave it at 1")
    return found

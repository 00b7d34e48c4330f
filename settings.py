"""Every knob of the suite, on a page to edit: `NAME: type = value`, and below it one line on what it does.

Four ways to set a knob, the later one wins: this page; in a notebook `settings.BATCH_SIZE = 64` before it calls a
script's `main([...])`; the environment variable `CLIP_<NAME>`; the flag `--<name>` of a script, as in
`CLIP_BATCH_SIZE=64 python clipFineTuner.py --learning-rate 5e-6`. A value may be worked out from those above it, and
follows them whichever way they are set. `python SCRIPT.py --help` lists the knobs which that script uses.
"""

import os
import sys
from typing import Annotated, Final, Literal

# The types of the knobs. The limits are checked by the scripts, and told in the words that stand here.
AtLeast0 = Annotated[int, ">= 0"]
AtLeast1 = Annotated[int, ">= 1"]
OneTo100 = Annotated[int, ">= 1", "<= 100"]
Positive = Annotated[float, "> 0"]
NotNegative = Annotated[float, ">= 0"]
Fraction = Annotated[float, ">= 0", "< 1"]
InnerFraction = Annotated[float, "> 0", "< 1"]
Share = Annotated[float, "> 0", "<= 1"]


# ------------------------------------------------------------------------------------------ where things are

# Where the paths below begin on Colab: Drive outlasts the machine.
DRIVE_FOLDER: Final = "/content/drive/MyDrive/clip-finetuning"

ON_COLAB: bool = "COLAB_RELEASE_TAG" in os.environ or "COLAB_GPU" in os.environ
"""keep data and checkpoints in Google Drive"""

ROOT: Final = f"{DRIVE_FOLDER}/" if ON_COLAB else ""

DATA_DIR: str = DRIVE_FOLDER if ON_COLAB else "."
"""folder of the raw catalogue"""

TRAIN_DATASET_PATTERN: str = ROOT + "webdataset_shards/clip_dataset_train.{000000..000260}.tar"
"""training shards"""

VALID_DATASET_PATTERN: str = ROOT + "webdataset_shards/clip_dataset_valid.{000000..000006}.tar"
"""validation shards"""

RETENTION_DATASET_PATTERN: str | None = None
"""shards of what the model knew before; the training measures them beside the validation shards"""

TEST_DATASET_PATTERN: str = ROOT + "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
"""test shards, for the last figure only"""

CHECKPOINT_DIR: str = ROOT + "checkpoints"
"""folder of checkpoints and metrics.jsonl"""

EVAL_CHECKPOINT: str = f"{CHECKPOINT_DIR}/final_checkpoint.pt"
"""what evaluate_clip.py --use-checkpoint loads"""


# ----------------------------------------------------------------------------------------------------- model

MODEL_NAME: str = "ViT-B-32"
"""OpenCLIP model name, or the path of an OpenCLIP config JSON"""

MODEL_PRETRAINED: str = "laion2b_s34b_b79k"
"""OpenCLIP pretrained tag, a local weights file, or empty for random weights"""

MODEL_CACHE_DIR: str | None = None
"""folder for downloaded weights (default: the library's own)"""

IMAGE_MEAN: str | None = None
"""mean of red, green and blue, as 0.5,0.5,0.5, for weights that do not say theirs; none: what is known of them"""

IMAGE_STD: str | None = None
"""the same for the standard deviation"""

IMAGE_RESIZE_MODE: Literal["shortest", "longest", "squash"] | None = None
"""the same for the size: shortest (cut the middle out), longest (pad) or squash"""

IMAGE_INTERPOLATION: Literal["bicubic", "bilinear"] | None = None
"""the same for the interpolation"""


# ---------------------------------------------------------------------------------------------------- shards

SHARD_SIZE: AtLeast1 = 1000
"""samples a shard; the views of one product stay together, so some hold a few more"""

QUALITY: OneTo100 = 95
"""JPEG quality of pictures that are encoded anew"""


# --------------------------------------------------------------------------------------------------- loading

BATCH_SIZE: AtLeast1 = 256
"""samples a step, all of them contrasted with each other (256 suits ViT-B-32 on a T4)"""

NUM_WORKERS: AtLeast0 = 0 if sys.platform == "win32" else 2
"""processes that load data or write shards; 0: none but the main one"""

CAPTION_KEY: str | None = None
"""field of the samples' .json that holds the caption, dotted as in meta.title; none: the .txt, or caption"""

PRODUCT_KEY: str | None = None
"""the same for the product's id; none: product_id"""

VIEWS: Literal["all", "random"] = "all"
"""an epoch shows every view of a product, or one drawn at random"""

CROP_SCALE: Share = 0.9
"""training shows a random crop of at least this share of a picture's area; 1: the whole picture, as in evaluation"""

FLIP: bool = False
"""training mirrors half of the pictures; not where a caption may name a side"""

REDUCED_DECODE: bool = False
"""decode large JPEGs of the training data at a fraction of their size: faster, not the same pixels"""

SEED: AtLeast0 = 42
"""seed of everything random"""


# ---------------------------------------------------------------------------------------------------- device

DEVICE: str = "auto"
"""torch device such as cuda, cuda:1, mps, cpu; auto takes the best there is"""

PRECISION: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
"""autocast type: fp16 (with loss scaling), bf16, or fp32 for none"""


# -------------------------------------------------------------------------------------------------- training

EPOCHS: AtLeast1 = 5
"""passes over the training shards"""

MAX_STEPS: AtLeast1 | None = None
"""stop after this many steps; takes the place of EPOCHS unless that is set by flag or environment too"""

LOSS: Literal["clip", "siglip"] = "clip"
"""clip: multi-positive InfoNCE; siglip: multi-positive sigmoid"""

OPTIMIZER: Literal["auto", "adamw", "muon"] = "auto"
"""auto: muon to train from random weights, adamw for weights that were trained before"""

LEARNING_RATE: Positive | None = None
"""peak learning rate; none: 1e-5 for weights that were trained before, 1e-3 for random ones"""

LR_SCHEDULE: Literal["cosine", "constant"] = "cosine"
"""learning rate after the warmup"""

WARMUP_STEPS: AtLeast0 | None = None
"""steps of linear warmup; none: a tenth of the training, at most 500"""

WEIGHT_DECAY: NotNegative = 0.1
"""decoupled decay, on matrices only"""

BETA1: Fraction = 0.9
"""AdamW's first moment decay"""

BETA2: Fraction = 0.98
"""AdamW's second moment decay (0.98: CLIP; 0.95: SigLIP)"""

EPS: Positive = 1e-6
"""AdamW's epsilon (1e-6: CLIP and SigLIP)"""

GRAD_CLIP_NORM: Positive | None = 1.0
"""largest gradient norm; none switches clipping off"""

MICRO_BATCH_SIZE: AtLeast1 | None = None
"""samples on the device at once; the gradient stays that of BATCH_SIZE"""

GRAD_CHECKPOINTING: bool = False
"""recompute activations in the backward pass: less memory, slower"""

EMA_DECAY: InnerFraction | None = None
"""keep an exponential moving average of the weights, and evaluate and save that"""


# ------------------------------------------------------------------------------ weights that were trained before

TUNE: Literal["full", "image", "text", "head", "lora"] = "full"
"""what trains: all, one tower (the other is locked), the last projections (head), or low-rank additions (lora)"""

LAYER_DECAY: Share = 1.0
"""factor of the learning rate from each block of a tower to the one before it; 1: the same rate everywhere"""

IMAGE_RATE: NotNegative = 1.0
"""factor of the image tower's learning rate; 0 locks it"""

TEXT_RATE: NotNegative = 1.0
"""the same for the text tower"""

LORA_RANK: AtLeast1 = 16
"""rank of the additions of TUNE=lora"""

LORA_ALPHA: Positive = 32.0
"""the additions count alpha / rank times"""

LORA_DROPOUT: Fraction = 0.0
"""share of the inputs of the additions that is dropped in training"""

LORA_TARGETS: str = "qkv,out,mlp"
"""what gets additions: attention's inputs (qkv) and output (out), the two layers after it (mlp)"""

ANCHOR: NotNegative | None = None
"""weight of the loss that holds embeddings to those of the frozen start; none: 0 for random weights, else 1"""

START_SHARE: Fraction | None = None
"""share of the start in the weights that are evaluated and saved (WiSE-FT); none: 0 for random weights, else 0.1"""

FIT_TEMPERATURE: bool = False
"""before the first step set the temperature to where the loss of a few batches is lowest"""

WARM_STATISTICS: AtLeast0 = 0
"""steps that fill the optimizer's moments before the first one that moves a weight"""


# ------------------------------------------------------------------------- checkpoints, evaluation and logs

CHECKPOINT_INTERVAL: AtLeast1 = 1000
"""steps between checkpoints"""

KEEP_CHECKPOINTS: AtLeast1 = 3
"""periodic checkpoints kept; older ones are deleted"""

RESUME: Annotated[str, "flag alone: auto"] = "none"
"""none, auto (the newest checkpoint of CHECKPOINT_DIR, if any), or a checkpoint file"""

EVAL_INTERVAL: AtLeast1 | None = 1000
"""steps between evaluations while training; none switches them off"""

KEEP: Literal["gain", "both"] = "gain"
"""best_checkpoint.pt is the best on the validation shards, or (both) the best mean of these and the retention shards"""

PATIENCE: AtLeast1 | None = None
"""stop after this many evaluations without a better mean Recall@10"""

LOG_INTERVAL: AtLeast1 = 10
"""steps between log lines"""

TENSORBOARD: bool = False
"""write TensorBoard event files beside the checkpoints"""

DEBUG: bool = False
"""show the traceback of an error, not its one line"""

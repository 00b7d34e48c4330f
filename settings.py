"""Every knob of the suite: its default, its help, its `--flag` and its environment variable, in one place.

Three ways to set a knob, the later one wins: the default below (edit it), the environment variable `CLIP_<NAME>`, and
the flag `--<name>` of a script, as in `CLIP_BATCH_SIZE=64 python clipFineTuner.py --learning-rate 5e-6`. The defaults
are also plain constants: `settings.BATCH_SIZE`. `python SCRIPT.py --help` lists the knobs which that script uses.
"""

import argparse
import difflib
import os
import sys
import types
import typing
from dataclasses import MISSING, dataclass, field, fields

# Where the default paths live on Colab: Drive outlasts the machine.
DRIVE_FOLDER = "/content/drive/MyDrive/clip-finetuning"


def knob(default, help, *, choices=None, at_least=None, above=None, at_most=None, below=None, on_drive=False):
    """A field of `Settings`: its default, one line of help, and which values it takes.

    `on_drive` marks a path whose default lies under `DRIVE_FOLDER` on Colab. A default may name an earlier knob as
    `$NAME`.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "choices": choices, "limits": limits, "on_drive": on_drive}
    return field(default=default, metadata=metadata)


# fmt: off
@dataclass
class Settings:
    """One line a knob: `NAME: type = knob(default, help, limits)`."""

    # Where things are
    ON_COLAB: bool = knob("COLAB_RELEASE_TAG" in os.environ or "COLAB_GPU" in os.environ, "keep data and checkpoints in Google Drive")
    DATA_DIR: str = knob(".", "folder of the raw catalogue", on_drive=True)
    TRAIN_DATASET_PATTERN: str = knob("webdataset_shards/clip_dataset_train.{000000..000260}.tar", "training shards", on_drive=True)
    VALID_DATASET_PATTERN: str = knob("webdataset_shards/clip_dataset_valid.{000000..000006}.tar", "validation shards", on_drive=True)
    TEST_DATASET_PATTERN: str = knob("webdataset_shards/clip_dataset_valid.{000007..000032}.tar", "test shards, for the last figure only", on_drive=True)
    CHECKPOINT_DIR: str = knob("checkpoints", "folder of checkpoints and metrics.jsonl", on_drive=True)
    EVAL_CHECKPOINT: str = knob("$CHECKPOINT_DIR/final_checkpoint.pt", "what evaluate_clip.py --use-checkpoint loads")

    # Model
    MODEL_NAME: str = knob("ViT-B-32", "OpenCLIP model name, or the path of an OpenCLIP config JSON")
    MODEL_PRETRAINED: str = knob("laion2b_s34b_b79k", "OpenCLIP pretrained tag, a local weights file, or empty for random weights")
    MODEL_CACHE_DIR: str | None = knob(None, "folder for downloaded weights (default: the library's own)")

    IMAGE_MEAN: str | None = knob(None, "mean of red, green and blue, as 0.5,0.5,0.5, for weights that do not say theirs; none: what is known of them")
    IMAGE_STD: str | None = knob(None, "the same for the standard deviation")
    IMAGE_RESIZE_MODE: str | None = knob(None, "the same for the size: shortest (cut the middle out), longest (pad) or squash", choices=("shortest", "longest", "squash"))
    IMAGE_INTERPOLATION: str | None = knob(None, "the same for the interpolation", choices=("bicubic", "bilinear"))

    # Shards
    SHARD_SIZE: int = knob(1000, "samples a shard; the views of one product stay together, so some hold a few more", at_least=1)
    QUALITY: int = knob(95, "JPEG quality of pictures that are encoded anew", at_least=1, at_most=100)

    # Loading
    BATCH_SIZE: int = knob(256, "samples a step, all of them contrasted with each other (256 suits ViT-B-32 on a T4)", at_least=1)
    NUM_WORKERS: int = knob(0 if sys.platform == "win32" else 2, "processes that load data or write shards; 0: none but the main one", at_least=0)
    VIEWS: str = knob("all", "an epoch shows every view of a product, or one drawn at random", choices=("all", "random"))
    REDUCED_DECODE: bool = knob(False, "decode large JPEGs of the training data at a fraction of their size: faster, not the same pixels")
    SEED: int = knob(42, "seed of everything random", at_least=0)

    # Device
    DEVICE: str = knob("auto", "torch device such as cuda, cuda:1, mps, cpu; auto takes the best there is")
    PRECISION: str = knob("auto", "autocast type: fp16 (with loss scaling), bf16, or fp32 for none", choices=("auto", "fp16", "bf16", "fp32"))

    # Training
    EPOCHS: int = knob(5, "passes over the training shards", at_least=1)
    MAX_STEPS: int | None = knob(None, "stop after this many steps; takes the place of EPOCHS unless that is set by flag or environment too", at_least=1)
    LOSS: str = knob("clip", "clip: multi-positive InfoNCE; siglip: multi-positive sigmoid", choices=("clip", "siglip"))
    OPTIMIZER: str = knob("auto", "auto: muon to train from random weights, adamw for weights that were trained before", choices=("auto", "adamw", "muon"))
    LEARNING_RATE: float | None = knob(None, "peak learning rate; none: 1e-5 for weights that were trained before, 1e-3 for random ones", above=0)
    LR_SCHEDULE: str = knob("cosine", "learning rate after the warmup", choices=("cosine", "constant"))
    WARMUP_STEPS: int | None = knob(None, "steps of linear warmup; none: a tenth of the training, at most 500", at_least=0)
    WEIGHT_DECAY: float = knob(0.1, "decoupled decay, on matrices only", at_least=0)
    BETA1: float = knob(0.9, "AdamW's first moment decay", at_least=0, below=1)
    BETA2: float = knob(0.98, "AdamW's second moment decay (0.98: CLIP; 0.95: SigLIP)", at_least=0, below=1)
    EPS: float = knob(1e-6, "AdamW's epsilon (1e-6: CLIP and SigLIP)", above=0)
    GRAD_CLIP_NORM: float | None = knob(1.0, "largest gradient norm; none switches clipping off", above=0)
    MICRO_BATCH_SIZE: int | None = knob(None, "samples on the device at once; the gradient stays that of BATCH_SIZE", at_least=1)
    GRAD_CHECKPOINTING: bool = knob(False, "recompute activations in the backward pass: less memory, slower")
    EMA_DECAY: float | None = knob(None, "keep an exponential moving average of the weights, and evaluate and save that", above=0, below=1)

    # Checkpoints, evaluation and logs
    CHECKPOINT_INTERVAL: int = knob(1000, "steps between checkpoints", at_least=1)
    KEEP_CHECKPOINTS: int = knob(3, "periodic checkpoints kept; older ones are deleted", at_least=1)
    RESUME: str = knob("none", "none, auto (the newest checkpoint of CHECKPOINT_DIR, if any), or a checkpoint file")
    EVAL_INTERVAL: int | None = knob(1000, "steps between evaluations while training; none switches them off", at_least=1)
    PATIENCE: int | None = knob(None, "stop after this many evaluations without a better mean Recall@10", at_least=1)
    LOG_INTERVAL: int = knob(10, "steps between log lines", at_least=1)
    TENSORBOARD: bool = knob(False, "write TensorBoard event files beside the checkpoints")
    DEBUG: bool = knob(False, "show the traceback of an error, not its one line")
# fmt: on


KNOBS = {f.name: f for f in fields(Settings)}


def _text(value):
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def _kind(knob):
    """(type, whether None is allowed) of a knob, from its annotation."""
    options = typing.get_args(knob.type) if isinstance(knob.type, types.UnionType) else (knob.type,)
    return next(t for t in options if t is not types.NoneType), types.NoneType in options


def _allowed(knob):
    """The values a knob takes, in words."""
    kind, optional = _kind(knob)
    if knob.metadata["choices"]:
        words = "one of " + ", ".join(knob.metadata["choices"])
    elif kind is bool:
        words = "true or false"
    else:
        words = {int: "a whole number", float: "a number", str: "text"}[kind]
        names = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
        bounds = [f"{names[k]} {_text(v)}" for k, v in knob.metadata["limits"].items() if v is not None]
        words = " ".join([words, " and ".join(bounds)]).strip()
    return words + (" or none" if optional else "")


def _fits(knob, value):
    if value is None:
        return _kind(knob)[1]
    limits, choices = knob.metadata["limits"], knob.metadata["choices"]
    return (
        (choices is None or value in choices)
        and (limits["at_least"] is None or value >= limits["at_least"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["at_most"] is None or value <= limits["at_most"])
        and (limits["below"] is None or value < limits["below"])
        and value != float("inf")
    )


def _flag(name):
    return "--" + name.lower().replace("_", "-")


def _converter(knob):
    """The argparse `type` of a knob: text -> value, or an error which names the knob, the value and the rule."""
    kind, optional = _kind(knob)

    def convert(text):
        try:
            if optional and text.lower() in ("none", ""):
                return None
            value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            if not _fits(knob, value):
                raise ValueError
        except (ValueError, KeyError):
            raise ValueRefused(knob, text) from None
        return value

    return convert


class ValueRefused(ValueError):
    """A knob was given a value that it does not take."""

    def __init__(self, knob, value):
        way = f"{_flag(knob.name)}, CLIP_{knob.name} or settings.py"
        super().__init__(f"{knob.name}={value!r} is not allowed: it takes {_allowed(knob)} (set by {way})")


class Parser(argparse.ArgumentParser):
    """An argparse parser of knobs and a script's own arguments; a mistake ends in one line and exit code 2."""

    def __init__(self, description, knobs=()):
        verbatim = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, allow_abbrev=False, formatter_class=verbatim)
        self.knobs = ["ON_COLAB", *knobs, "DEBUG"]
        ways = "each also by the environment variable CLIP_<NAME>, or by editing settings.py"
        group = self.add_argument_group("knobs", ways)
        for name in self.knobs:
            knob, kind = KNOBS[name], _kind(KNOBS[name])[0]
            bare = {"RESUME": "auto"}.get(name, True if kind is bool else None)  # the value of the flag alone
            group.add_argument(
                _flag(name),
                type=_converter(knob),
                default=argparse.SUPPRESS,
                metavar="true|false" if kind is bool else "|".join(knob.metadata["choices"] or [kind.__name__.upper()]),
                help=f"{knob.metadata['help']} [{_text(globals()[name]) or 'empty'}]".replace("%", "%%"),
                **({} if bare is None else {"nargs": "?", "const": bare}),
            )

    def _get_value(self, action, text):
        if action.dest.upper() not in self.knobs:
            return super()._get_value(action, text)
        try:  # argparse would rewrite the refusal into a message that names no rule
            return action.type(text)
        except ValueRefused as refusal:
            self.error(str(refusal))

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None, namespace=None):
        """The script's own arguments and its knobs as lower-case attributes, defaults < environment < flags."""
        args = sys.argv[1:] if args is None else list(args)
        for name in [n for n in os.environ if n.startswith("CLIP_") and n[5:] not in KNOBS]:
            for near in difflib.get_close_matches(name[5:], KNOBS, 1, 0.8):
                print(f"{self.prog}: warning: {name} sets nothing; did you mean CLIP_{near}?", file=sys.stderr)
        # Environment values go in front as arguments, so that the same types and limits hold for them.
        leading = [f"{_flag(name)}={os.environ['CLIP_' + name]}" for name in self.knobs if "CLIP_" + name in os.environ]
        values = super().parse_args(leading + args, namespace)
        given = {name.upper(): value for name, value in vars(values).items() if name.upper() in self.knobs}
        values.given = set(given)  # the knobs that this call set, by flag or environment
        resolved = _resolve(given)
        for name in self.knobs:
            try:  # a default that was edited in this file obeys the same rule
                setattr(values, name.lower(), _converter(KNOBS[name])(_text(resolved[name])))
            except ValueRefused as refusal:
                self.error(str(refusal))
        return values


def _resolve(given):
    """Every knob's value: those given, else the defaults, with Drive folders on Colab and `$NAME` filled in."""
    values = {}
    for name, knob in KNOBS.items():
        value = given.get(name, knob.default if knob.default is not MISSING else None)
        if name not in given and isinstance(value, str):
            if knob.metadata["on_drive"] and values["ON_COLAB"]:
                value = DRIVE_FOLDER if value == "." else f"{DRIVE_FOLDER}/{value}"
            for earlier in [n for n in values if f"${n}" in value]:
                value = value.replace(f"${earlier}", values[earlier])
        values[name] = value
    return values


def run(main):
    """Call `main()` as a command: a user's mistake ends in one line and exit code 2, Ctrl-C in exit code 130."""
    for stream in (sys.stdout, sys.stderr):  # a caption that the console cannot show is no reason to stop
        if hasattr(stream, "reconfigure"):  # a notebook's has no such thing, and no need of it
            stream.reconfigure(errors="replace")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):  # torch's
                raise
            error = f"out of memory: lower BATCH_SIZE, or MICRO_BATCH_SIZE in training ({str(error).splitlines()[0]})"
        if os.environ.get("CLIP_DEBUG", "").lower() == "true" or "--debug" in sys.argv:
            raise
        line = " ".join(str(error).split())
        line = "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in line
        )  # a terminal obeys what a file made it say
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
        sys.exit(2)


globals().update(_resolve({}))  # the documented constants: settings.BATCH_SIZE, settings.MODEL_NAME, ...

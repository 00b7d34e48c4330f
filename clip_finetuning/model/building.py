"""Building a model: what a name, a tag or a file stands for, and what of it is for a file to say.

`create_model` begins with what the user named, `load_model` with a checkpoint. Either way the architecture is agreed on
first (`agreement.py`), open_clip builds it with random weights or a tag's, and a file's weights come last.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from clip_finetuning.model import agreement, hub, lora_file, peft_layout, sources, tokenizer_files
from clip_finetuning.model.architecture import (
    Architecture,
    check_preprocess,
)
from clip_finetuning.model.clip_model import ClipModel, add_logit_bias
from clip_finetuning.model.image_recipe import assume, plain, with_activation_of, with_image_settings
from clip_finetuning.model.weights import START, load_weights, quiet, read_checkpoint
from clip_finetuning.runtime.text import printable

Device = str | torch.device


def create_model(
    name: str,
    pretrained: str | None = "",
    cache_dir: str | None = None,
    device: Device = "cpu",
    seed: int = 0,
    image: dict | None = None,
) -> ClipModel:
    """Build a model with its tokenizer and preprocessing.

    `name` is an OpenCLIP name, a `hf-hub:` or `local-dir:` one, or the path of a config JSON; `pretrained` a tag, a
    weights file, or empty for random weights drawn from `seed`; `image` what `image_settings` returned. Raises ValueError
    or FileNotFoundError naming the remedy.
    """
    if cache_dir and not Path(cache_dir).is_dir():
        raise FileNotFoundError(f"MODEL_CACHE_DIR={cache_dir} is no folder; create it, or unset it for the default one")
    pretrained = pretrained or ""
    if sources.is_source(name) and not (pretrained and Path(pretrained).exists()):
        if pretrained:
            raise ValueError(
                f"MODEL_PRETRAINED={pretrained} is no file, and {name} brings its own weights; leave MODEL_PRETRAINED empty"
            )
        return with_image_settings(_of_source(name, cache_dir, device, seed), image)
    named = agreement.named(name, cache_dir)
    if pretrained and not agreement.is_tag(named.name, pretrained):
        if not Path(pretrained).exists():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(named.name))
            tags = tags or "none, this model has no published weights"
            raise ValueError(
                f"MODEL_PRETRAINED={pretrained} is neither a file, a folder of weights nor a tag of {named.name}; its tags: {tags}; "
                "empty means random weights"
            )
        checkpoint = read_checkpoint(pretrained)
        architecture = agreement.agreed(pretrained, checkpoint, named, None, cache_dir)
        return _load(pretrained, checkpoint, architecture, cache_dir, device, image)
    architecture = with_activation_of(named, pretrained) if pretrained else named
    clip_model = _build(architecture, pretrained, cache_dir, device, seed)
    if not pretrained:
        print(f"{named.name}: random weights, because MODEL_PRETRAINED is empty (seed {seed})")
    return with_image_settings(clip_model, image)


def load_model(
    path: str | Path,
    device: Device = "cpu",
    cache_dir: str | None = None,
    name: str | None = None,
    default_name: str | None = None,
    checkpoint: dict | None = None,
    image: dict | None = None,
) -> ClipModel:
    """Build the model of a checkpoint file and load its weights.

    The architecture comes from the checkpoint. A `name` that contradicts it is refused; a file that does not say what
    it holds (bare weights, another trainer's file) is taken to be of `name`, else of `default_name`. `checkpoint` is what
    `read_checkpoint(path)` returned, if it was read already; `image` what `image_settings` returned.
    """
    checkpoint = checkpoint or read_checkpoint(path, mapped=True)
    outlives = sources.is_source(name) and name == checkpoint.get("model_name") and agreement.is_whole(checkpoint)
    named = None if name is None or outlives else agreement.named(name, cache_dir)
    architecture = agreement.agreed(path, checkpoint, named, default_name, cache_dir)
    return _load(path, checkpoint, architecture, cache_dir, device, image)


def create_start(
    clip_model: ClipModel,
    checkpoint: dict,
    cache_dir: str | None = None,
    image: dict | None = None,
    named: str | None = None,
) -> ClipModel:
    """The model that a fine-tuned one began as: its architecture with the weights that its checkpoint names as its start.

    `named`: a tag or file that the user says it began with. Raises ValueError with the reason where these weights are not to
    be had: nobody named them, they were random, or are gone.
    """
    pretrained = named or checkpoint.get("pretrained")
    if not isinstance(pretrained, str):
        raise ValueError("the checkpoint does not say which weights it began with")
    architecture = Architecture(clip_model.name, clip_model.config)
    if not named and "path" in checkpoint and not sources.is_source(pretrained):
        pretrained = _found(pretrained, checkpoint["path"], architecture)
    return _begun(architecture, pretrained, named, cache_dir, clip_model.device, image)


def kept_start(
    clip_model: ClipModel, checkpoint: dict, cache_dir: str | None = None, image: dict | None = None
) -> ClipModel | None:
    """The same as the run kept it beside its checkpoints, or None: no name can have come to stand for other weights there.

    `checkpoint` has its `path`.
    """
    path, record = Path(checkpoint["path"]).parent / START, checkpoint.get("start")
    if not isinstance(record, dict) or not path.is_file():
        return None
    kept = read_checkpoint(path, mapped=True)
    if kept.get("start") != record:
        return None
    architecture = Architecture(clip_model.name, clip_model.config)
    start = _load(
        path, kept, agreement.agreed(path, kept, architecture, None, cache_dir), cache_dir, clip_model.device, image
    )
    named = checkpoint.get("pretrained")
    return replace(start, pretrained=printable(named)) if isinstance(named, str) else start


def _begun(architecture, pretrained, named, cache_dir, device, image=None):
    """The model of an architecture with the weights that a checkpoint, or the user as `named`, says it began with."""
    if pretrained and agreement.is_tag(architecture.name, pretrained) and open_clip.get_model_config(architecture.name):
        architecture = with_activation_of(architecture, pretrained)
        return with_image_settings(_build(architecture, pretrained, cache_dir, device), image)
    source = pretrained or architecture.name
    if sources.is_source(source):
        if not sources.is_cached(source, cache_dir):
            raise ValueError(
                f"the checkpoint began with {printable(source)[:200]}, which would be fetched; if you trust that, evaluate it "
                "once as MODEL_NAME"
            )
        return with_image_settings(_of_source(source, cache_dir, device), image)
    if not pretrained:
        raise ValueError("the checkpoint began with random weights, which had nothing to forget")
    if not Path(pretrained).exists():
        if named:
            raise ValueError(f"MODEL_PRETRAINED={named} is neither a file nor a tag of {architecture.name}")
        raise ValueError(f"the weights that the checkpoint began with are not there: {printable(pretrained)[:200]}")
    weights = read_checkpoint(pretrained, mapped=True)
    architecture = agreement.agreed(pretrained, weights, architecture, None, cache_dir)
    return _load(pretrained, weights, architecture, cache_dir, device, image)


def load_base(
    path: str | Path,
    checkpoint: dict,
    device: Device = "cpu",
    cache_dir: str | None = None,
    name: str | None = None,
    default_name: str | None = None,
    image: dict | None = None,
) -> ClipModel:
    """The model that the LoRA additions of a checkpoint are to be added to; arguments as for `load_model`.

    The weights are those that the checkpoint names, or a file of that name beside it. Raises ValueError if they are not to
    be had, or are others than it was trained on.
    """
    named = None if name is None else agreement.named(name, cache_dir)
    architecture = agreement.agreed(path, checkpoint, named, default_name, cache_dir)
    return with_image_settings(_base(path, checkpoint, architecture, cache_dir, device)[0], image)


def check_base(name: str, pretrained: str | None) -> None:
    """ValueError unless LoRA's checkpoints can name MODEL_PRETRAINED as their base."""
    if not pretrained and not sources.is_source(name):
        raise ValueError(
            "TUNE=lora adds to weights that its checkpoints name, and random ones have no name: set MODEL_PRETRAINED, or "
            "train them with TUNE=full"
        )
    if pretrained and Path(pretrained).exists() and lora_file.is_alone(read_checkpoint(pretrained, mapped=True)):
        raise ValueError(
            f"MODEL_PRETRAINED={pretrained} holds LoRA additions alone, and TUNE=lora cannot add to additions: take the "
            "merged weights of that run, in its best_checkpoint.pt or final_checkpoint.pt"
        )


def _base(path, checkpoint, architecture, cache_dir, device):
    """(the model that has the weights which additions were trained on, the additions).

    They are where the additions say, else in the start that their run kept beside them.
    """
    try:
        return _base_of_name(path, checkpoint, architecture, cache_dir, device)
    except ValueError:
        kept = Path(path).parent / START
        if "peft" in checkpoint or not kept.is_file():
            raise
        saved = lora_file.read(path, checkpoint)
        with contextlib.suppress(ValueError):
            base = _with_base(_begun(architecture, str(kept), None, cache_dir, device), saved, path, checkpoint)
            print(printable(f"{path} adds to the weights in {kept}: they are no longer in {saved.base.pretrained}"))
            return base, saved
        raise


def _base_of_name(path, checkpoint, architecture, cache_dir, device):
    is_adapter = "peft" in checkpoint
    pretrained = peft_layout.base_of(checkpoint) if is_adapter else lora_file.read(path, checkpoint).base.pretrained
    found = _found(pretrained, path, architecture)
    try:
        if Path(found).exists() and lora_file.is_alone(read_checkpoint(found, mapped=True)):
            raise ValueError(f"{printable(found)} has no weights but additions itself")
        base = _begun(architecture, found, None, cache_dir, device)
    except (ValueError, OSError) as error:
        remedy = "put that file back where it was, or beside this one"
        if is_adapter:
            remedy = f"let base_model_name_or_path in {peft_layout.CONFIG} be a tag of {architecture.name} or a file"
        raise ValueError(
            f"{path} holds LoRA additions alone, and the weights that they add to are not to be had ({error}); {remedy}"
        ) from error
    if is_adapter:
        print(printable(f"{path} has no hash of the weights that it adds to: they are taken to be {found}"))
        return replace(base, pretrained=str(path)), peft_layout.saved(path, checkpoint, base.model)
    saved = lora_file.read(path, checkpoint)
    return _with_base(base, saved, path, checkpoint), saved


def _with_base(base, saved, path, checkpoint):
    """A base as the file of its additions wants it; ValueError if it has other weights."""
    lora_file.check_base(base.model, saved, path)
    if "logit_bias" in saved.additions:
        add_logit_bias(base)
    preprocess = check_preprocess(checkpoint.get("preprocess"), path, base.preprocess["size"])
    return replace(base, preprocess=preprocess, pretrained=str(path))


def _found(pretrained, path, architecture):
    """A tag as it is; a file where it was, else beside the one that names it."""
    beside = Path(path).parent / Path(pretrained).name
    is_elsewhere = pretrained and not agreement.is_tag(architecture.name, pretrained) and not Path(pretrained).exists()
    return str(beside) if is_elsewhere and beside.is_file() else pretrained


def _load(path, checkpoint, architecture, cache_dir, device, image):
    """The model of an architecture with the weights and the preprocessing of a checkpoint."""
    if lora_file.is_alone(checkpoint):
        clip_model, saved = _base(path, checkpoint, architecture, cache_dir, device)
        lora_file.merge(clip_model.model, saved, path)
        return with_image_settings(clip_model, image)
    known, recipe = checkpoint.get("preprocess"), None
    if known is None:
        architecture, recipe = assume(path, architecture, checkpoint)
    files = checkpoint.get(tokenizer_files.FIELD)
    with tokenizer_files.unpacked(files, path) if files else contextlib.nullcontext() as tokenizer:
        clip_model = _build(architecture, "", cache_dir, device, tokenizer=tokenizer)
    clip_model.pretrained = str(path)
    size = clip_model.preprocess["size"]
    clip_model.preprocess = {**recipe, "size": size} if recipe else check_preprocess(known, path, size)
    load_weights(clip_model, checkpoint, path)
    return with_image_settings(clip_model, image)


def _of_source(name: str, cache_dir: str | None, device: Device, seed: int = 0) -> ClipModel:
    """The model of a `hf-hub:` or `local-dir:` name, with its own weights."""
    source = sources.look_up(name, cache_dir)
    weights = sources.weights_of(name, cache_dir)
    clip_model = _build(source.architecture, "", cache_dir, device, seed, source.tokenizer)
    known = {key: plain(value) for key, value in source.preprocess.items() if key in clip_model.preprocess}
    size = clip_model.preprocess["size"]
    clip_model.preprocess = check_preprocess({**clip_model.preprocess, **known, "size": size}, name, size)
    if weights is None:
        print(f"{name}: random weights, because the folder has none (seed {seed})")
        return clip_model
    load_weights(clip_model, read_checkpoint(weights, mapped=True), weights)
    clip_model.pretrained = name if name.startswith(sources.HUB) else str(weights)
    return clip_model


# ------------------------------------------------------------------------------------- by open_clip's hands


def _build(
    architecture: Architecture,
    pretrained: str,
    cache_dir: str | None,
    device: Device,
    seed: int = 0,
    tokenizer: str | None = None,
) -> ClipModel:
    """Let open_clip build the model; its many ways to fail become one line each.

    `tokenizer`: the folder or the repository that has its files, if not where the architecture says.
    """
    name, config = architecture
    known = _buildable(architecture, tokenizer)
    _need_transformers(known)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"cache_dir": cache_dir}
    if config["text_cfg"].get("hf_tokenizer_name"):
        options["trust_remote_code"] = False
    unreachable = ""
    try:
        with (
            hub.looked_at(hub.wanted_of(known.name, pretrained, known.config), cache_dir) as unreachable,
            quiet(),
            _known_to_open_clip(known),
        ):
            model = open_clip.create_model(
                known.name, pretrained=pretrained or None, cache_dir=cache_dir, device=device, pretrained_text=False
            )
            tokenize = open_clip.get_tokenizer(known.name, **options)
    except Exception as error:  # hub clients differ in what they raise
        reason = unreachable or sources.in_short(error)
        raise ValueError(
            f"model {name} with weights '{pretrained}' could not be had ({reason}); the first use downloads weights and "
            "tokenizer: connect to the network once, or set MODEL_CACHE_DIR to a folder that holds them, or "
            "MODEL_PRETRAINED to a local file, or to nothing for random weights"
        ) from error
    preprocess = plain(open_clip.get_model_preprocess_cfg(model))
    preprocess = check_preprocess(preprocess, name, getattr(model.visual, "image_size", preprocess.get("size")))
    return ClipModel(model, tokenize, preprocess, name, pretrained, torch.device(device), config)


def _need_transformers(architecture: Architecture) -> None:
    """ValueError naming the package, if a model needs it and it is not installed."""
    text = architecture.config["text_cfg"]
    parts = {"tokenizer": text.get("hf_tokenizer_name"), "text tower": text.get("hf_model_name")}
    needed = " and ".join(f"{part} {source}" for part, source in parts.items() if source)
    is_here = sys.modules.get("transformers") or importlib.util.find_spec("transformers")
    if needed and not is_here:
        raise ValueError(
            f"model {architecture.name}: the package transformers, which has its {needed}, is not installed; "
            "pip install transformers"
        )


def _buildable(architecture: Architecture, tokenizer: str | None) -> Architecture:
    """The architecture under a name that open_clip looks up nowhere, with its tokenizer from where it is."""
    name, config = architecture
    if sources.is_source(name):
        place, _, identifier = name.partition(":")
        name = place  # open_clip tells some tokenizers by a model's name, but never by such a one
        tokenizer = tokenizer or (identifier if place == "local-dir" else None)
    if tokenizer and config["text_cfg"].get("hf_tokenizer_name"):
        config = {**config, "text_cfg": {**config["text_cfg"], "hf_tokenizer_name": tokenizer}}
    return Architecture(name, config)


@contextlib.contextmanager
def _known_to_open_clip(architecture: Architecture) -> Iterator[None]:
    """Within the context open_clip finds this architecture under its name; no file is written, no other model changes."""
    name, config = architecture
    models = open_clip.factory._MODEL_CONFIGS
    before = models.get(name)
    models[name] = config
    try:
        yield
    finally:
        if before is None:
            del models[name]
        else:
            models[name] = before

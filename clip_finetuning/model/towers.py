"""Where each parameter of an open_clip model stands: in which tower, how far below its top, in the last projection or not.

Whatever the tower is made of (open_clip's transformers and ResNets, timm's trunks, Hugging Face's encoders), its
parameters are of a stem, of one block after another, or of what follows the last block.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from clip_finetuning.model.fast_towers import OpenClip
from clip_finetuning.model.fingerprint import SCALARS

WITH_PREVIOUS = 99999.0  # timm's mark for what belongs to the block before it
Blocks = Callable[
    [str], tuple[float, ...] | None
]  # parameter name -> what the blocks are ordered by; None: of no block


class Place(NamedTuple):
    """Where a parameter stands."""

    tower: str  # image, text, decoder (CoCa's, which no contrastive loss reads), or both: scale and bias of the logits
    below: int | None  # 0 above the last block, 1 in it, ..., blocks + 1 in the stem; None: the blocks are not known
    is_head: bool  # of the last projection of its tower, or of all above the blocks where there is none


def places(model: OpenClip) -> dict[str, Place]:
    """The place of every parameter of an open_clip model, by name."""
    names: dict[str, list[str]] = {"image": [], "text": [], "decoder": [], "both": []}
    for name, _ in model.named_parameters():
        names[tower_of(name)].append(name)
    text = getattr(model, "text", None)
    found = {name: Place("both", 0, True) for name in names["both"]}
    found |= _in_tower("image", names["image"], "visual.", model.visual)
    found |= _in_tower("text", names["text"], "" if text is None else "text.", model if text is None else text)
    found |= _in_tower("decoder", names["decoder"], "text_decoder.", getattr(model, "text_decoder", None))
    return {name: found[name] for name, _ in model.named_parameters()}


def tower_of(name: str) -> str:
    """The tower of a parameter or buffer by its name; `CLIP` itself is its text tower."""
    if name in SCALARS:
        return "both"
    return {"visual": "image", "text_decoder": "decoder"}.get(name.partition(".")[0], "text")


def kind_of(model: OpenClip, tower: str) -> str:
    """The class of a tower, of timm's trunk or Hugging Face's encoder in it where there is one."""
    module = getattr(model, {"image": "visual", "text": "text", "decoder": "text_decoder"}[tower], model)
    if hasattr(module, "config"):
        return type(module.transformer).__name__
    return type(getattr(module, "trunk", module)).__name__


def _in_tower(kind: str, names: list[str], prefix: str, tower: Any) -> dict[str, Place]:
    own = [name[len(prefix) :] for name in names]
    below = _below(own, _blocks(tower), _embeddings(tower)) if own else {}
    projection = _projection(tower, own) if own else set()
    above = {name for name in own if below[name] == 0}
    head = set() if kind == "decoder" else projection or above
    below |= dict.fromkeys(projection, 0)
    return {name: Place(kind, below[short], short in head) for name, short in zip(names, own)}


def _below(names: list[str], block_of: Blocks, embeddings: set[str]) -> dict[str, int | None]:
    """{name: how far below the top}, from names in the order in which their modules were registered.

    That order tells what is of no block: before the first one stands the stem, after the last one what follows.
    """
    orders = {name: block_of(name) for name in names}
    numbers: dict[tuple[float, ...], int] = {}
    for order in sorted({order for order in orders.values() if order is not None}):
        joins = bool(numbers) and order[-1] == WITH_PREVIOUS
        numbers[order] = max(numbers.values(), default=0) + (not joins)
    blocks = max(numbers.values(), default=0)
    if not blocks:
        return dict.fromkeys(names)
    inside = [place for place, name in enumerate(names) if orders[name] is not None]
    below: dict[str, int | None] = {}
    current = blocks + 1
    for place, name in enumerate(names):
        order = orders[name]
        if order is not None:
            current = blocks + 1 - numbers[order]
        elif place > inside[-1]:
            current = 0
        below[name] = blocks + 1 if name in embeddings else current
    return below


def _embeddings(tower: Any) -> set[str]:
    """Names of the embeddings that lie beside the blocks, wherever they were registered."""
    if tower is None:
        return set()
    found = {f"{name}.weight" for name, module in tower.named_modules() if isinstance(module, nn.Embedding)}
    own = {name for name, _ in tower.named_parameters(recurse=False)}
    return {name for name in found if not re.search(r"\.\d+\.", name)} | (own - {"proj", "text_projection"})


# --------------------------------------------------------------------------------------------- by kind of tower


def _blocks(tower: Any) -> Blocks:
    """What tells the block of a parameter of this tower."""
    trunk = getattr(tower, "trunk", None)
    if trunk is not None:
        return _timm_blocks(trunk)
    config = getattr(tower, "config", None)
    if config is not None and hasattr(tower, "transformer"):
        return _hugging_face_blocks(tower.transformer, config)
    return _numbered(
        r"transformer\.resblocks\.(\d+)\.", r"resblocks\.(\d+)\.", r"cross_attn\.(\d+)\.", r"layer(\d+)\.(\d+)\."
    )


def _numbered(*patterns: str) -> Blocks:
    compiled = [re.compile(pattern) for pattern in patterns]

    def order(name):
        matches = filter(None, (pattern.match(name) for pattern in compiled))
        return next((tuple(map(float, match.groups())) for match in matches), None)

    return order


def _timm_blocks(trunk: Any) -> Blocks:
    """By timm's own matcher, as its `param_groups_layer_decay` does; but the final norm is of no block."""
    if not hasattr(trunk, "group_matcher"):
        return lambda name: None
    matcher = trunk.group_matcher(coarse=False)
    if not isinstance(matcher, Mapping):
        return lambda name: None
    patterns: list[tuple[re.Pattern, int, tuple]] = []
    for number, spec in enumerate(spec for spec in matcher.values() if spec is not None):
        several: Iterable = spec if isinstance(spec, (tuple, list)) else [(spec, None)]
        patterns += [(re.compile(pattern), number, suffix or ()) for pattern, suffix in several]

    def order(name):
        if not name.startswith("trunk."):
            return None
        for pattern, number, suffix in patterns:
            if match := pattern.match(name[len("trunk.") :]):
                captured = [group for group in match.groups() if group is not None]
                return tuple(map(float, (number, *captured, *suffix))) if captured else None
        return None

    return order


def _hugging_face_blocks(encoder: Any, config: Any) -> Blocks:
    """By the list of layers that is as long as the configuration says."""
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", None)
    lists = [
        name for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not lists:
        return lambda name: None
    return _numbered(rf"transformer\.{re.escape(lists[0])}\.(\d+)\.")


def _projection(tower: Any, names: list[str]) -> set[str]:
    """Names of the parameters of the last projection; empty if the tower ends without one."""
    for prefix in ("proj", "text_projection", "attnpool.c_proj", "head.proj", "head.mlp", "head.pool.proj"):
        if found := {name for name in names if name == prefix or name.startswith(f"{prefix}.")}:
            return found
    trunk: Any = getattr(tower, "trunk", None)
    classifier = trunk.get_classifier() if hasattr(trunk, "get_classifier") else None
    if not isinstance(classifier, nn.Module):
        return set()
    own = {id(parameter) for parameter in classifier.parameters()}
    return {name for name in names if id(tower.get_parameter(name)) in own}

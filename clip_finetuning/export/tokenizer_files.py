"""A tokenizer as a file: tokenizer.json, which gives the tokens that the model was trained on.

open_clip cleans a caption before its tokenizer sees it: quotes and ligatures made plain, HTML entities resolved, blanks
folded, lower case or no punctuation where the model wants that. What of it are rules about characters goes into the file; the
rest, which guesses encodings, stays for `clean` of preprocess.py, and the check says whether it is needed.
"""

import json
import string
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from clip_finetuning.model.clip_model import ClipModel

FILE = "tokenizer.json"
START, END = "<start_of_text>", "<end_of_text>"
WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PLAIN = {"[\u2018-\u201b\u02bc]": "'", "[\u201c-\u201f]": '"'}  # patterns; as ftfy, which open_clip calls
EXACT = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
ENTITIES = {
    "&amp;": "&",
    "&quot;": '"',
    "&#34;": '"',
    "&#39;": "'",
    "&apos;": "'",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": " ",
}


def cleaner(clip_model: ClipModel) -> str:
    """How open_clip cleans captions for this model: lower, whitespace or canonicalize."""
    default = "lower" if isinstance(clip_model.tokenizer, SimpleTokenizer) else "whitespace"
    return (clip_model.config["text_cfg"].get("tokenizer_kwargs") or {}).get("clean", default)


def context_length(clip_model: ClipModel) -> int:
    return clip_model.config["text_cfg"].get("context_length", open_clip.CLIPTextCfg.context_length)


def refuse(clip_model: ClipModel, form: str) -> None:
    """ValueError if no tokenizer.json gives the tokens of the model's tokenizer."""
    tokenizer: Any = clip_model.tokenizer
    why = None
    if isinstance(tokenizer, SimpleTokenizer):
        why = "its text reduction draws tokens at random" if tokenizer.reduction_fn else None
    elif not isinstance(tokenizer, HFTokenizer):
        why = f"its tokenizer is a {type(tokenizer).__name__}"
    elif tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        why = "its tokenizer rearranges tokens (tokenizer_mode or strip_sep_token)"
    elif not tokenizer.tokenizer.is_fast:
        why = "its tokenizer has no fast version"
    elif tokenizer.tokenizer.pad_token_id is None:
        why = "its tokenizer has no padding"
    if why:
        raise ValueError(f"--form {form} cannot hold {clip_model.name}: {why}; --form open_clip keeps it as it is")


def write(clip_model: ClipModel, folder: Path, inputs: list[str]) -> None:
    """tokenizer.json, which cuts and pads to the context length by itself, and what transformers reads beside it."""
    built = (
        _simple(clip_model.tokenizer)
        if isinstance(clip_model.tokenizer, SimpleTokenizer)
        else _wrapped(clip_model.tokenizer)
    )
    tokenizer, special, pad = built
    tokenizer.normalizer = _normalizer(cleaner(clip_model), tokenizer.normalizer)
    length = context_length(clip_model)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad), length=length)
    tokenizer.save(str(folder / FILE))
    # The class that takes tokenizer.json as it is; CLIP's own would build another of it.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "padding_side": "right"}
    config |= {"clean_up_tokenization_spaces": False, "model_input_names": inputs, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def _simple(own: Any) -> tuple[Any, dict[str, str], int]:
    """(open_clip's own byte pairs as a tokenizer of the package tokenizers, special tokens, number of the padding).

    open_clip pads with 0, which is "!". As a special token it would be found in captions too, so transformers pads with
    the end of the text; what stands behind the first one changes nothing.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    pairs = sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)
    model = models.BPE(own.encoder, pairs, unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix="")
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    ends = (END, own.eot_token_id), (START, own.sot_token_id)
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    return tokenizer, {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}, 0


def _wrapped(own: Any) -> tuple[Any, dict[str, str], int]:
    """(a Hugging Face tokenizer's inner one, copied, its special tokens, number of the padding)."""
    from tokenizers import Tokenizer

    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    found = {name: getattr(own.tokenizer, name, None) for name in names}
    special = {name: str(token) for name, token in found.items() if token}
    return Tokenizer.from_str(own.tokenizer.backend_tokenizer.to_str()), special, own.tokenizer.pad_token_id


def _normalizer(clean: str, own: Any) -> Any:
    """open_clip's cleaning as rules about characters, in its order, before what the tokenizer does itself."""
    from tokenizers import Regex
    from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence, Strip

    steps: list[Any] = [Replace(entity, sign) for entity, sign in ENTITIES.items()]
    steps += [Replace(Regex(pattern), sign) for pattern, sign in PLAIN.items()]
    steps += [Replace(sign, letters) for sign, letters in EXACT.items()]
    steps += [NFC()]
    if clean == "canonicalize":
        signs = "".join("\\" + sign for sign in string.punctuation.replace("_", ""))
        steps += [Replace("_", " "), Replace(Regex(f"[{signs}]"), "")]
    steps += [Replace(Regex(r"\s+"), " "), Strip()]
    steps += [Lowercase()] if clean in ("lower", "canonicalize") else []
    return Sequence([*steps, *([own] if own is not None else [])])

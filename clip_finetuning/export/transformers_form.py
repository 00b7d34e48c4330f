"""The form `transformers`: CLIPModel or SiglipModel with its processor and tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file

from clip_finetuning.export import hf_weights, tokenizer_files
from clip_finetuning.export.form import Facts, Options, half_if, need, unit
from clip_finetuning.model.clip_model import ClipModel

NAME = "transformers"
WEIGHTS = "model.safetensors"
LARGEST = 2  # as `eos_token_id` it tells CLIPModel to read a text at the largest number
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def require(options: Options) -> None:
    """ValueError naming the extra, if a package is missing."""
    need(NAME, "transformers", "tokenizers")


def is_siglip(clip_model: ClipModel) -> bool:
    """Which of the two an architecture is nearer to: SigLIP's text tower is read at the last place, its image tower timm's."""
    text, vision = clip_model.config["text_cfg"], clip_model.config["vision_cfg"]
    return text.get("pool_type") == "last" and bool(vision.get("timm_model_name"))


def refuse(clip_model: ClipModel) -> None:
    """ValueError in one line, if neither CLIPModel nor SiglipModel has such an architecture."""
    tokenizer_files.refuse(clip_model, NAME)
    convert(clip_model)


def convert(clip_model: ClipModel) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config.json, weights) of transformers; ValueError naming what it has no place for."""
    siglip, model, text_cfg = is_siglip(clip_model), clip_model.model, clip_model.config["text_cfg"]
    try:
        if not siglip and text_cfg.get("pool_type") == "eos":
            hf_weights.demand(text_cfg.get("eos_id", LARGEST) != LARGEST, f"its texts end with number {LARGEST}")
        vision, vision_weights = (hf_weights.siglip_vision if siglip else hf_weights.clip_vision)(model.visual)
        text, text_weights = (hf_weights.siglip_text if siglip else hf_weights.clip_text)(model)
    except hf_weights.Lacking as lacking:
        target = "SiglipModel" if siglip else "CLIPModel"
        raise ValueError(
            f"transformers' {target} has no such architecture as {clip_model.name}: {lacking}; "
            "--form open_clip takes it, and --form onnx whatever torch can trace"
        ) from None
    weights = vision_weights | text_weights | {"logit_scale": model.logit_scale.detach().reshape([1] if siglip else [])}
    if siglip:
        bias = getattr(model, "logit_bias", None)
        weights["logit_bias"] = torch.zeros(1) if bias is None else bias.detach().reshape(1)
    config = {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": "siglip" if siglip else "clip",
        "vision_config": vision | {"model_type": "siglip_vision_model" if siglip else "clip_vision_model"},
        "text_config": text
        | _special_ids(clip_model)
        | {"model_type": "siglip_text_model" if siglip else "clip_text_model"},
    }
    if not siglip:
        width = clip_model.config["embed_dim"]
        config |= {"projection_dim": width, "logit_scale_init_value": float(model.logit_scale.detach())}
        config["vision_config"]["projection_dim"] = config["text_config"]["projection_dim"] = width
    return config, weights


def _special_ids(clip_model: ClipModel) -> dict[str, int]:
    """Numbers of special tokens. CLIPModel reads a text at the first `eos_token_id`, unless that is LARGEST."""
    tokenizer: Any = clip_model.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        return {"bos_token_id": tokenizer.sot_token_id, "eos_token_id": tokenizer.eot_token_id, "pad_token_id": 0}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: number for name in names if (number := getattr(tokenizer.tokenizer, name, None)) is not None}
    text = clip_model.config["text_cfg"]
    if not is_siglip(clip_model):
        ids["eos_token_id"] = text.get("eos_id", LARGEST) if text.get("pool_type") == "eos" else LARGEST
    return ids


def write(clip_model: ClipModel, folder: Path, options: Options) -> Facts:
    """config.json, safetensors, preprocessor_config.json and the tokenizer."""
    config, weights = convert(clip_model)
    config["torch_dtype"] = {"fp32": "float32", "fp16": "float16"}[options.dtype]
    _write_json(folder / "config.json", config)
    save_file(half_if(options, weights), folder / WEIGHTS, metadata={"format": "pt"})
    facts = Facts([WEIGHTS])
    processor, told = image_processor(clip_model.preprocess, is_siglip(clip_model))
    facts.notes += told
    if not is_siglip(clip_model) and getattr(clip_model.model, "logit_bias", None) is not None:
        facts.notes.append(
            "The logit bias of the sigmoid loss is left out: CLIPModel has none. Embeddings do not need it."
        )
    _write_json(folder / "preprocessor_config.json", processor)
    # SigLIP's padding is seen like words: a mask, where the tokenizer gives one, would hide it.
    tokenizer_files.write(
        clip_model, folder, ["input_ids"] if is_siglip(clip_model) else ["input_ids", "attention_mask"]
    )
    return facts


def image_processor(preprocess: dict[str, Any], siglip: bool) -> tuple[dict[str, Any], list[str]]:
    """(preprocessor_config.json, what it cannot say)."""
    size, mode = preprocess["size"], preprocess["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    notes = []
    config = {
        "image_processor_type": f"{'Siglip' if siglip else 'CLIP'}ImageProcessor",
        "processor_class": "SiglipProcessor" if siglip else "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": RESAMPLE.get(preprocess["interpolation"], RESAMPLE["bicubic"]),
        "do_center_crop": False,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }
    if mode == "shortest" and height == width and not siglip:  # SiglipImageProcessor has no crop
        config |= {"size": {"shortest_edge": height}, "do_center_crop": True}
    elif mode != "squash":
        config["do_resize"] = False
        notes.append(
            f"The processor has no resize like the trained one ('{mode}' to {width} x {height}), so it takes pictures of "
            "exactly this size alone, which preprocess.py makes."
        )
    return config, notes


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> "Folder":
    """The folder by `AutoModel` and `AutoProcessor`, in fp32."""
    return Folder(folder)


class Folder:
    """A folder as transformers loads it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return unit(_features(self.model.get_image_features(pixel_values=pixels)))

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        tokens = self.processor(text=list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return unit(_features(self.model.get_text_features(input_ids=tokens["input_ids"])))


def _features(output: Any) -> torch.Tensor:
    """Embeddings: a tensor until transformers 5, then a field of what comes back."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def usage(name: str, options: Options) -> str:
    """Ten lines of Python at most that embed a picture and a caption, with the folder of that name."""
    return f"""\
import sys, torch
from transformers import AutoModel, AutoProcessor
folder = {name!r}  # where this folder lies
sys.path.insert(0, folder)
from preprocess import prepare, clean
model, processor = AutoModel.from_pretrained(folder).float().eval(), AutoProcessor.from_pretrained(folder)
inputs = processor(images=[prepare("photo.jpg")], text=[clean("red leather ankle boots")], padding="max_length", truncation=True, return_tensors="pt")
with torch.inference_mode():
    result = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
print(result.image_embeds @ result.text_embeds.T)
"""

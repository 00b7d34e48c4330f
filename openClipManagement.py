"""The OpenCLIP model, for scripts of one's own: building it, its preprocessing and tokenizer, its embeddings, its checkpoints.

import openClipManagement as clip

clip_model = clip.load_model("checkpoints/final_checkpoint.pt")
transform = clip.image_transform(clip_model, train=False)
images = clip.encode_images(clip_model, torch.stack([transform(data) for data in encoded_pictures]))  # (N, D)
texts = clip.encode_texts(clip_model, clip_model.tokenizer(captions))  # (N, D), of unit length like the images
"""

from clip_finetuning.model.building import create_model, load_model
from clip_finetuning.model.clip_model import (
    ClipModel,
    add_logit_bias,
    batch_norms,
    count_parameters,
    encode_images,
    encode_texts,
    image_transform,
    is_untrained,
    training_mode,
)
from clip_finetuning.model.image_recipe import image_settings
from clip_finetuning.model.weights import read_checkpoint, save_checkpoint
from clip_finetuning.runtime.device import autocast, pick_device, pick_precision, training_attention

__all__ = [
    "ClipModel",
    "add_logit_bias",
    "autocast",
    "batch_norms",
    "count_parameters",
    "create_model",
    "encode_images",
    "encode_texts",
    "image_settings",
    "image_transform",
    "is_untrained",
    "load_model",
    "pick_device",
    "pick_precision",
    "read_checkpoint",
    "save_checkpoint",
    "training_attention",
    "training_mode",
]

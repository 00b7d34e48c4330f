"""A catalogue's pictures flow in, an index flows out, which answers words and pictures with products."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

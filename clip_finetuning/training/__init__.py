"""A run: settings, a model and batches flow in, better weights, checkpoints and their log flow out."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

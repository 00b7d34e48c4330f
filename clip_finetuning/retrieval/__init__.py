"""What a model is worth: embeddings flow in, exact numbers with their intervals, comparisons and a page flow out."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

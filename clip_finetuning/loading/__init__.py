"""What a training step or an evaluation takes in: tar shards flow in, batches of tensors and what they belong to flow out."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

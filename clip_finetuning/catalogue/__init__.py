"""What a shop knows of its products: a raw catalogue flows in, rows, the JSON mapping and an audit of it flow out."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

"""The OpenCLIP model: a name, a tag or a file flows in, a model that sees as it was trained to flows out, and embeddings of it."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

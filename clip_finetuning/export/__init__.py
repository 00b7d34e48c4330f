"""A model leaves the suite: a folder in the form that its user needs flows out, proved equal on real pictures."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

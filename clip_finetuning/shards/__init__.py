"""What training reads: the JSON mapping flows in, tar shards and the manifest that proves them flow out."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

"""One way to see a picture: encoded bytes of any kind flow in, RGB or a plain JPEG flows out, or the reason why not."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)

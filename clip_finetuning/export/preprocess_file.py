"""preprocess.py, which lies in an exported folder: pictures and captions prepared as the model was trained on them.

Pictures need Pillow and NumPy alone, so that whoever deploys the folder can read it, copy it, or write it anew in their language.
"""

from typing import Any

FILE = "preprocess.py"

HEAD = '''\
"""Pictures as this model was trained on them: first frame, turned by EXIF, transparency on white, {how}."""

{imports}

def prepare(source):
    """A path, an open file or a Pillow picture -> an RGB picture of {width} x {height} pixels, for the model's own preprocessing."""
    picture = ImageOps.exif_transpose(source if isinstance(source, Image.Image) else Image.open(source))
    if picture.mode[0] in "IF":  # 16 bits; Pillow would clip them
        values = np.asarray(picture, dtype=float)
        scale = 257 if picture.mode.startswith("I;16") or values.max() > 255 else 1
        picture = Image.fromarray((values / scale + 0.5).clip(0, 255).astype(np.uint8))
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
'''
SQUASH = """\
    return picture.resize(({width}, {height}), Image.Resampling.{filter})
"""
SHORTEST = """\
    picture = picture.resize([{side}], Image.Resampling.{filter})
    left, top = round((picture.width - {width}) / 2), round((picture.height - {height}) / 2)
    return picture.crop((left, top, left + {width}, top + {height}))
"""
SQUARE_SIDE = "int({width} * side / min(picture.size)) for side in picture.size"
ANY_SIDE = "max(1, round(side / {pick}(picture.width / {width}, picture.height / {height}))) for side in picture.size"
LONGEST = """\
    picture = picture.resize([{side}], Image.Resampling.{filter})
    ground = Image.new("RGB", ({width}, {height}), ({fill}, {fill}, {fill}))
    ground.paste(picture, (({width} - picture.width) // 2, ({height} - picture.height) // 2))
    return ground
"""
PIXELS = '''

def pixels(sources):
    """N pictures -> (N, 3, {height}, {width}) float32, the image tower's input."""
    rows = [np.asarray(prepare(source), dtype=np.float32) / 255 for source in sources]
    rows = [(row - np.float32({mean})) / np.float32({std}) for row in rows]
    return np.stack(rows).transpose(0, 3, 1, 2)
'''
CLEAN = '''

def clean(caption):
    """A caption as the tokenizer was given it in training; it needs the package ftfy."""
    import ftfy

    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    {lines}
'''
CLEANERS = {
    "lower": 'return " ".join(caption.split()).lower()',
    "whitespace": 'return " ".join(caption.split())',
    "canonicalize": 'caption = caption.replace("_", " ").translate(str.maketrans("", "", string.punctuation))\n'
    '    return " ".join(caption.lower().split())',
}
TOKENS = '''

@functools.cache
def tokenizer():
    return Tokenizer.from_file(os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer.json"))


def tokens(captions):
    """N captions -> (N, {context_length}) int64, cut and padded: the text tower's input."""
    encodings = tokenizer().encode_batch([clean(caption) for caption in captions])
    return np.array([encoding.ids for encoding in encodings], dtype=np.int64)
'''


def render(preprocess: dict[str, Any], cleaner: str | None, tensors: bool, context_length: int) -> str:
    """The file for a preprocessing config.

    `cleaner` names what captions need, None for nothing; `tensors` adds what makes arrays of pictures and captions, and
    needs a `cleaner`.
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = preprocess["resize_mode"]
    # As in open_clip, whose resize to a size that is no square is bicubic whatever the config says.
    bilinear = preprocess["interpolation"] == "bilinear" and not (mode == "shortest" and height != width)
    fields = {"width": width, "height": height, "fill": preprocess["fill_color"]}
    fields |= {"filter": "BILINEAR" if bilinear else "BICUBIC", "mean": preprocess["mean"], "std": preprocess["std"]}
    fields |= {
        "how": _how(mode, height, width),
        "imports": _imports(cleaner, tensors),
        "context_length": context_length,
    }
    square = mode == "shortest" and height == width
    side = SQUARE_SIDE if square else ANY_SIDE.replace("{pick}", "max" if mode == "longest" else "min")
    body = {"squash": SQUASH, "shortest": SHORTEST, "longest": LONGEST}[mode]
    text = HEAD + body.replace("{side}", side) + (PIXELS if tensors else "")
    if cleaner:
        text += CLEAN.replace("{lines}", CLEANERS[cleaner])
    text += TOKENS if tensors else ""
    for name, value in fields.items():  # not str.format: the code has braces of its own
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _how(mode: str, height: int, width: int) -> str:
    return {
        "squash": f"squashed to {width} x {height}",
        "shortest": f"the shorter side at {width} x {height} and the middle cut out",
        "longest": f"the longer side at {width} x {height} and padded",
    }[mode]


def _imports(cleaner: str | None, tensors: bool) -> str:
    standard = (["html"] if cleaner else []) + (["functools", "os"] if tensors else [])
    standard = sorted(standard)
    standard += ["string"] if cleaner == "canonicalize" else []
    others = ["import numpy as np", "from PIL import Image, ImageOps"]
    others += ["from tokenizers import Tokenizer"] if tensors else []
    lines = [f"import {name}" for name in standard]
    return "\n".join([*lines, *([""] if lines else []), *others]) + "\n"

"""What a cell says of pictures: one name, several, or URLs, in the forms that shops and their exports have."""

import json
import re

from clip_finetuning.runtime.text import text_of

URL = re.compile(r"[a-z][a-z0-9+.-]+://|//[\w-]+(\.[\w-]+)+/", re.IGNORECASE)
BETWEEN_URLS = re.compile(r"[\s|;,]+(?=(?:[a-z][a-z0-9+.-]+:)?//)", re.IGNORECASE)
ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif", "jp2"),
    *("ppm", "pgm", "tga", "ico"),
)
ENDING = re.compile(rf"\.(?:{'|'.join(ENDINGS)})", re.IGNORECASE)
# Names that end as pictures do, whatever stands between them.
ENDED = re.compile(rf"(.+?{ENDING.pattern})(?=$|[^\w/\\.-])[^\w/\\.-]*", re.IGNORECASE)
SEPARATORS = ("|", ";", ",")  # the first that is there stands between the names: the others may be part of one
OBJECT_KEYS = ("path", "file_name", "filename", "src", "url", "href", "image", "name", "link")
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
DEEPEST = 5  # lists and objects within each other
LONGEST_LIST = 100_000  # characters of a cell that are read as a list


def is_url(name: str) -> bool:
    """Whether a name is to be fetched; `//cdn.shop.example/1.jpg` is too."""
    return URL.match(name) is not None


def names_of(cell: object, depth: int = 0) -> list[str]:
    """The texts of a cell that each name a picture, or several (see `pieces`); of lists and objects, as JSON too."""
    if depth > DEEPEST:
        return []
    if isinstance(cell, list | tuple):
        return [name for item in cell for name in names_of(item, depth + 1)]
    if isinstance(cell, dict):
        return next((names for key in OBJECT_KEYS if (names := names_of(cell.get(key), depth + 1))), [])
    if isinstance(cell, str):
        items = _listed(cell.strip())
        if items is not None:
            return names_of(items, depth + 1)
        if "\n" in cell or "\r" in cell:
            return [name for line in cell.splitlines() for name in names_of(line, depth + 1)]
    name = text_of(cell)
    return [name] if name else []


def pieces(name: str) -> list[str]:
    """The names that a text consists of, if it is several: separated by `|`, `;`, `,` or after their endings."""
    if is_url(name):
        return BETWEEN_URLS.split(name)
    for separator in SEPARATORS:
        if separator in name:
            return [piece for part in name.split(separator) if (piece := part.strip().strip("'\""))]
    ended = ENDED.findall(name)
    return ended if len(ended) > 1 and "".join(ended) == "".join(ENDED.split(name)) else [name]


def all_names(cell: object) -> list[str]:
    """Every name in a cell, each once, for those who cannot look whether the whole of a text is one picture's name."""
    names, waiting = {}, names_of(cell)
    while waiting:
        name = waiting.pop(0)
        parts = pieces(name)
        if len(parts) > 1:
            waiting = parts + waiting
        elif parts:
            names[parts[0]] = None
    return list(names)


def _listed(text: str) -> list | dict | None:
    """What a text in brackets or braces writes out: a list (JSON, Python, NumPy, PostgreSQL) or an object; else None."""
    if len(text) > LONGEST_LIST or text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    try:
        value = json.loads(text)
        return value if isinstance(value, list | dict) else None
    except (ValueError, RecursionError):
        inner = text[1:-1]
    if not QUOTED.sub("", inner).strip(", \n"):
        return ["".join(groups) for groups in QUOTED.findall(inner)]
    return [part.strip(" '\"") for part in inner.split(",")]

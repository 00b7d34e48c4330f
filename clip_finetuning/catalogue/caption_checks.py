"""Captions that teach nothing or something else: with markup, only a name, in another language than most."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from clip_finetuning.catalogue.markup import without_markup
from clip_finetuning.runtime.text import text_of

PICTURE_NAME = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)", re.IGNORECASE)
CODE = re.compile(r"(?=(?:.*\d){3})[\w.#/-]+", re.ASCII)  # one word with three digits or more: SKU-00123, 7702.11
# Scripts by their blocks; of a mixed caption the first in this order counts, so that Japanese is not taken for Chinese.
SCRIPTS = {
    "Japanese": "\u3040-\u30ff",
    "Korean": "\uac00-\ud7af\u1100-\u11ff",
    "Chinese": "\u4e00-\u9fff\u3400-\u4dbf",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
SCRIPT = {name: re.compile(f"[{block}]") for name, block in SCRIPTS.items()}
LATIN = re.compile(r"[A-Za-z]")
FREQUENT = {
    "English": "the and with for of this your our from are is that to by it on",
    "French": "et avec pour dans une les des du cette est aux sur de la le en un par",
    "German": "und mit für aus der die das eine ist auf den dem von im zur",
    "Spanish": "con para los las una del este esta por más el y de la en un",
    "Italian": "della delle dei di il gli per è questo sono nel alla con un una la da",
    "Portuguese": "com para uma dos das não são você em ao pela de um por do da",
    "Dutch": "het een met voor van deze zijn op aan naar de en is",
    "Polish": "z dla jest na oraz się ze wykonana wykonany do i w",
    "Swedish": "och med för ett av är på från en till",
    "Turkish": "ve ile için bir olan çok kadın erkek",
}
LANGUAGES_OF = {
    word: [language for language, words in FREQUENT.items() if word in words.split()]
    for word in " ".join(FREQUENT.values()).split()
}
ENOUGH = 2  # such words tell a language


def language_of(caption: str) -> str:
    """The language of a caption by its script or its frequent words; blank where these do not tell."""
    latin = len(LATIN.findall(caption))
    for name, pattern in SCRIPT.items() if not caption.isascii() else ():
        if 2 * len(pattern.findall(caption)) > latin:
            return name
    words = re.findall(r"[^\W\d_]+", caption.lower())
    hits = Counter(language for word in words for language in LANGUAGES_OF.get(word, ()))
    best = hits.most_common(2)
    clear = best and best[0][1] >= ENOUGH and (len(best) == 1 or best[0][1] > best[1][1])
    return best[0][0] if clear else ""


def only_a_name(caption: str, image_path: str, product: str) -> bool:
    """Whether a caption is only the name of a picture, the product's id or another code."""
    own = {text_of(product), PurePosixPath(image_path).stem, PurePosixPath(image_path).name}
    return caption in own or bool(PICTURE_NAME.fullmatch(caption) or CODE.fullmatch(caption))


def caption_findings(captions: Iterable[tuple[str, str, str]]) -> dict[str, list[dict[str, str]]]:
    """{kind: findings} of (caption, image_path, product id) items; each distinct caption is found once."""
    found: dict[str, list[dict[str, str]]] = {"markup": [], "only_a_name": [], "other_language": []}
    languages, seen = {}, set()
    for caption, image_path, product in captions:
        if caption not in languages:
            languages[caption] = language_of(caption)
            if without_markup(caption) != caption:
                found["markup"].append({"caption": caption})
        if caption not in seen and only_a_name(caption, image_path, product):
            seen.add(caption)
            found["only_a_name"].append({"caption": caption, "image": image_path})
    usual = Counter(filter(None, languages.values())).most_common(1)
    for caption, language in languages.items():
        if language and language != usual[0][0]:
            found["other_language"].append({"caption": caption, "language": language, "most": usual[0][0]})
    return found

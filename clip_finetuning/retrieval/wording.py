"""When two captions say the same in nearly the same words: beyond case and blanks, punctuation and the order of clauses.

"Navy coat, wool; zip." and "navy coat. Zip, wool" are one wording. The order of words within a clause is kept: "red dress
with white dots" is not "white dress with red dots". Letters keep their accents, and signs that mean something (# % & + *)
stay: "keycap #" is not "keycap *".
"""

import re
import unicodedata

from clip_finetuning.runtime.text import same_caption_key

CLAUSES = re.compile(
    r"[.,;:!?\u2026](?:\s|$)|[\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f()\[\]{}|\u2022\n]|\s[-\u2013\u2014]\s"
)
PUNCTUATION = re.compile(r"[.,;:!?\u2026'\"`\u00b4\u2018-\u201f\u00ab\u00bb\-\u2010-\u2015_/\u00b7]+")


def wording_key(caption: str) -> str:
    """Equal for captions of one wording."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    clauses = {" ".join(PUNCTUATION.sub(" ", clause).split()) for clause in CLAUSES.split(text)} - {""}
    return " . ".join(sorted(clauses)) or same_caption_key(caption)

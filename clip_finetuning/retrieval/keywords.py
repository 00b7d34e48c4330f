"""A caption as a shopper would type it: at most eight words, left over when clauses and stop words are left out.

Nothing is put into other words, so it is the same on any machine. The clauses of a caption are taken from the front
until three words are found. The stop words are those of the one language, of those listed, that has most of them in the
caption; a word that says what is missing (`without`, `sans`, `ohne`) is none. In scripts without spaces so many
characters count as a word.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

MOST_WORDS = 8
ENOUGH_WORDS = 3  # further clauses are left out
# A mark within a number or a name (4.5 cm, 1,000, T-shirt) ends no clause; the full-width ones always do.
CLAUSE_END = re.compile(r"[.,:!?;](?=\s|$)|[;!?()\[\]{}|•·\n،؛؟。，、；：！？（）「」【】।]|\s[-–—/]+\s|[–—]")
TRADE_MARKS = str.maketrans("", "", "™®©")
STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "English": "a an the and or with for of in on at to from by is are be this that these those it its as your our "
        "which has have features featuring made",
        "German": "der die das den dem des ein eine einen einem einer eines und oder mit für aus von vom im in am an auf "
        "zu zur zum bei ist sind als auch dieser diese dieses",
        "French": "le la les un une des du de et ou avec pour dans en sur au aux par est sont ce cette ces qui son sa ses",
        "Spanish": "el la los las un una unos unas y e o con para de del en por al a es son que su sus este esta lo",
        "Italian": "il lo la i gli le un uno una e o con per di del della dei delle da dal in nel nella su al alla è sono "
        "che questo questa",
        "Portuguese": "o a os as um uma e ou com para de do da dos das em na por ao é são que seu sua este esta",
        "Dutch": "de het een en of met voor van in op aan uit is zijn dit deze die te bij door naar",
        "Swedish": "och med för av i på en ett är till från som den det de",
        "Danish": "og med for af av i på en et er til fra som den det de",
        "Polish": "i w z na do dla jest są oraz o od po ze się to ten ta",
        "Turkish": "ve ile için bir bu olan",
        "Russian": "и в во на с со для из по от до к у о это как",
        "Arabic": "و في من على إلى الى عن مع هذا هذه التي الذي أو ذات",
    }.items()
}
# How many characters of a script that has no spaces are about a word.
CHARACTERS_A_WORD = {
    2: re.compile(
        "[\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    ),
    4: re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"),  # Thai, Lao, Burmese, Khmer
}


def keywords(caption: str) -> str:
    """At most eight words of a caption, in its order and spelling; blank where it has stop words and marks alone."""
    clauses = [_words(clause) for clause in CLAUSE_END.split(caption.translate(TRADE_MARKS))]
    spoken = any(map(_is_spoken, (word for clause in clauses for word in clause)))
    stop_words = _stop_words(word for clause in clauses for word in clause)
    found: dict[str, str] = {}  # by its lower case
    room = MOST_WORDS
    for clause in clauses:
        if MOST_WORDS - room >= ENOUGH_WORDS:
            break
        for word in clause:
            # Signs such as emoji say something only where there are no words.
            if word.lower() in stop_words | found.keys() or (spoken and not _is_spoken(word)):
                continue
            word = word if found else _cut(word)
            if (size := _size(word)) > room:
                return " ".join(found.values())
            found[word.lower()] = word
            room -= size
    return " ".join(found.values())


def of_columns(values: Iterable[str]) -> str:
    """At most eight different words of the values of some columns, in lower case as one would type them."""
    words = dict.fromkeys(word for value in values for word in _words(value.lower()) if _is_spoken(word))
    found, room = [], MOST_WORDS
    for word in words:
        if (size := _size(word)) > room:
            break
        found.append(word)
        room -= size
    return " ".join(found)


def _words(clause: str) -> list[str]:
    """What stands between spaces, without the marks around it; none of marks alone."""
    return [word for part in clause.split() if (word := _stripped(part))]


def _stripped(part: str) -> str:
    """A word without the punctuation at its ends; signs alone, such as emoji, stay as they are."""
    start, end = 0, len(part)
    while start < end and _is_mark(part[start]):
        start += 1
    while end > start and _is_mark(part[end - 1]):
        end -= 1
    return part[start:end]


def _is_mark(character: str) -> bool:
    return character not in "%&#" and unicodedata.category(character)[0] == "P"


def _is_spoken(word: str) -> bool:
    return any(map(str.isalnum, word))


def _stop_words(words: Iterable[str]) -> frozenset[str]:
    """Those of the language that has most of them here; of several languages the first that is listed."""
    lowered = [word.lower() for word in words]
    return max(STOP_WORDS.values(), key=lambda listed: sum(word in listed for word in lowered))


def _size(word: str) -> int:
    """For how many words it counts."""
    for characters, script in CHARACTERS_A_WORD.items():
        if unspaced := sum(map(len, script.findall(word))):
            rest = any(map(str.isalnum, script.sub("", word)))
            return -(-unspaced // characters) + rest
    return 1


def _cut(word: str) -> str:
    """As much of a word from its beginning as counts for eight at most, whole signs alone."""
    if _size(word) <= MOST_WORDS:
        return word
    taken = ""
    for sign in _signs(word):
        if _size(taken + sign) > MOST_WORDS:
            break
        taken += sign
    return taken


def _signs(word: str) -> Iterator[str]:
    """Characters with the marks that belong to them."""
    sign = ""
    for character in word:
        if sign and unicodedata.category(character)[0] != "M":
            yield sign
            sign = ""
        sign += character
    yield sign

"""Lines of a text file of any encoding: UTF-8, what its byte order mark or the user says, or a guess that is said."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

SAMPLE = 1 << 18  # bytes of lines that are no UTF-8, from which the encoding is guessed
MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
EASTERN = {  # the lead bytes of the characters that are in daily use
    "cp949": (0xB0, 0xC8),
    "gb18030": (0xB0, 0xD7),
    "big5": (0xA4, 0xC6),
    "cp932": (0x81, 0x97),
    "euc_jp": (0xA4, 0xCF),
}
WESTERN = ("cp1252", "mac_roman", "cp850", "cp1250", "iso8859_2", "cp1254")  # the likelier ones first
OTHERS = ("cp1251", "koi8_r", "mac_cyrillic", "cp866", "cp1253", "cp1255", "cp1256", "tis_620")
WESTERN_LETTERS = set("àáâãäåæçèéêëìíîïñòóôõöøœùúûüýÿßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØŒÙÚÛÜÝŸ")
TYPOGRAPHY = set("’‘“”„‚–—…•™®©°€£«»¡¿½¼¾×·ºª²³´\xa0")
HIGH = re.compile(rb"[\x80-\xff]+")
KANA = re.compile("[\u3040-\u30ff]")
UNREADABLE = "\ufffd"  # what stands for bytes that the encoding does not have


def _unreadable(error):
    return UNREADABLE, error.end


codecs.register_error("clip-unreadable", _unreadable)


class Encoding(NamedTuple):
    """How a file is read. Of a `mixed` one only the lines that are no UTF-8 are read by `name`."""

    name: str
    guessed: bool = False
    mixed: bool = False

    def guess_said(self) -> str:
        """What to say of rows that were read by a guess."""
        return f"are no UTF-8 and were read as {self.name}, a guess; --encoding NAME overrules it"


class Line(NamedTuple):
    """A line with its end; `guessed` if it holds more than ASCII and its encoding is a guess."""

    text: str
    guessed: bool


def find_encoding(path: str | os.PathLike, given: str | None = None) -> Encoding:
    """The encoding of a text file. Raises ValueError for a given name that is none."""
    if given:
        _check_name(given)
        return Encoding(given)
    with open(path, "rb") as file:
        start = file.read(4096)
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if marked:
        return Encoding(marked)
    wide = _wide(start)
    if wide:
        return Encoding(wide, guessed=True)
    sample, others = _lines_beyond_utf8(path)
    if not sample:
        return Encoding("utf-8")
    return Encoding(guess(sample), guessed=True, mixed=others)


@contextmanager
def open_lines(path: str | os.PathLike, encoding: Encoding) -> Iterator[Iterator[Line]]:
    """The lines of a file, each with its end: LF or CRLF, or CR where that is what ends the first one.

    Bytes that the encoding does not have become U+FFFD.
    """
    name, errors = ("utf-8", "surrogateescape") if encoding.mixed else (encoding.name, "clip-unreadable")
    end = "\n"
    try:
        with open(path, encoding=name, errors=errors, newline="") as file:
            first = file.readline()
            end = "\r" if first.endswith("\r") else end
    except UnicodeError:
        pass  # comes again, and is said
    with open(path, encoding=name, errors=errors, newline=end) as file:
        yield _lines(path, file, encoding)


def guess(sample: bytes) -> str:
    """The likeliest encoding of lines that are no UTF-8.

    Letters that stand alone among ASCII are Western Europe's, where short samples mislead libraries. Of the others
    charset-normalizer tells the scripts apart, but a Chinese, Japanese or Korean reading must make everyday characters.
    """
    words = b" ".join(word for word in re.split(rb"[\x00-\x3f]+", sample) if not word.isascii())
    shares = {name: _everyday_share(words, name) for name in EASTERN}
    if shares["cp932"] > 0.95 and len(KANA.findall(words.decode("cp932", "replace"))) > 0.2 * len(HIGH.findall(words)):
        return "cp932"
    western = min(WESTERN, key=lambda name: _oddness(sample.decode(name, "replace")))
    runs = HIGH.findall(words)
    beyond = sum(map(len, runs))
    if beyond < 1.8 * len(runs) and 2 * _oddness(sample.decode(western, "replace")) < beyond:
        return (_neighbour(sample) if western == "cp1252" else None) or western
    from charset_normalizer import from_bytes

    found = from_bytes(words, cp_isolation=[*EASTERN, *OTHERS]).best()
    best = max(shares, key=shares.__getitem__)
    if found and (shares.get(found.encoding, 0) > 0.6 or (found.encoding in OTHERS and shares[best] < 0.9)):
        return found.encoding
    return best if shares[best] > 0.6 else western


def _neighbour(sample):
    """Turkish's or Hungarian's encoding if the Western letters are theirs at the same bytes, else None.

    Icelandic, which has the letters that Turkish's are taken for, has accents too; Estonian has no u with a circumflex.
    """
    letters = set(sample.decode("cp1252", "replace").lower())
    if letters & set("ðþ") or ("ý" in letters and letters & set("çöü")):
        return None if letters & set("áíóæ") else "cp1254"
    return "cp1250" if {"õ", "û"} <= letters and letters & set("öü") else None


def _check_name(name):
    try:
        "".encode(name)
        b"".decode(name)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"--encoding {name} is no text encoding that Python knows; names are such as utf-8, cp1252, gbk, shift_jis"
        ) from error


def _wide(start):
    """UTF-16 or UTF-32 without a mark, by where the zero bytes of its ASCII characters are."""
    for name in WIDE:
        for end in ("\n", "\r"):
            width, mark = 4 if "32" in name else 2, end.encode(name)
            first = next((at for at in range(0, len(start), width) if start.startswith(mark, at)), -1)
            if first > 0 and 2 * start.count(0, 0, first) >= first * (width - 1) // width:
                return name
    return None


def _lines_beyond_utf8(path):
    """(lines that are no UTF-8, up to SAMPLE bytes; whether more lines are UTF-8 beyond ASCII than are not)."""
    sample, size, wrong, right = [], 0, 0, 0
    with open(path, "rb") as file:
        for line in chain.from_iterable(re.split(rb"(?<=\r)(?!\n)", line) for line in file):
            if line.isascii():
                continue
            try:
                line.decode()
                right += 1
            except UnicodeDecodeError:
                wrong += 1
                if size < SAMPLE:
                    sample.append(line[:SAMPLE])
                    size += len(sample[-1])
    return b"".join(sample), right > wrong


def _lines(path, file, encoding):
    try:
        for line in file:
            if line.isascii():
                yield Line(line, False)
            elif encoding.mixed:
                raw = line.encode("utf-8", "surrogateescape")
                text = raw.decode(encoding.name, "clip-unreadable") if _has_escapes(line) else line
                yield Line(text, text is not line)
            else:
                yield Line(line, encoding.guessed)
    except UnicodeError as error:
        raise ValueError(f"{path} cannot be read as {encoding.name} ({error}); name another --encoding") from error


def _has_escapes(line):
    try:
        line.encode()
    except UnicodeEncodeError:
        return True
    return False


def _everyday_share(sample, name):
    """How many of the characters beyond ASCII are everyday ones of an Eastern encoding, 0 to 1."""
    first, last = EASTERN[name]
    good = count = 0
    for char in sample[:20_000].decode(name, "replace"):
        if not char.isascii():
            raw = b"" if char == UNREADABLE else char.encode(name)
            count += 1
            good += len(raw) == 2 and first <= raw[0] <= last
    return good / max(1, count)


def _oddness(text):
    """How unlike Western European text: symbols inside words, capitals after small letters, letters of elsewhere."""
    odd = 0
    for at in (match.start() for match in re.finditer(r"[^\x00-\x7f]", text[:200_000])):
        char, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
        if char in WESTERN_LETTERS:
            alone = not before.isalpha() and not after.isalpha()
            odd += 2 * (char.isupper() and before.islower()) + (alone and char not in "àÀéèáíóúýæøåöäü")
        elif char in TYPOGRAPHY:
            odd += 0 if char == "’" else 3 if before.isalpha() and after.isalpha() else 0.2
        else:
            odd += 0.4 if unicodedata.category(char)[0] == "L" and "LATIN" in unicodedata.name(char, "") else 4
    return odd

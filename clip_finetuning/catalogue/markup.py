"""Captions without markup: tags go, entities become their characters."""

import html
import re
from html.entities import html5

# HTML's own elements alone: "<XL>", "a < b" and "<3" are text. Those within a line leave no gap: so<b>ft</b> is one word.
INLINE = "a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd mark q s samp small span strike strong sub sup tt u var wbr"
BLOCK = (
    "address area article aside audio base blockquote body br button canvas caption center col colgroup data dd details dialog dir "
    "div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head header hr html iframe img "
    "input label legend li link main map menu meta nav noscript object ol optgroup option output p param picture pre progress section "
    "select source summary svg table tbody td template textarea tfoot th thead time title tr track ul video"
)
# With a value, as in `a<b and c>d` there is no tag. None of these patterns reads on past the next "<".
ATTRIBUTES = r"""(?:\s+[a-z_:@][\w:.-]*\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s"'<>]+))*"""


def _tags(names):
    return re.compile(rf"</?(?:{'|'.join(names.split())}){ATTRIBUTES}\s*/?>", re.IGNORECASE)


INLINE_TAG, BLOCK_TAG = _tags(INLINE), _tags(BLOCK)
DECLARATION = re.compile(r"<!doctype\b[^<>]*>|<!\[CDATA\[|\]\]>|<\?xml\b[^<>]*>", re.IGNORECASE)
CUT_OFF = re.compile(
    rf"""</?(?:{"|".join((INLINE + " " + BLOCK).split())})\s+[a-z-]+\s*=\s*["'][^<>]*\Z""", re.IGNORECASE
)
HIDDEN = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))  # what goes with all that it holds
# Without its semicolon only what nothing else looks like: in "black&copper" there is no copyright sign.
ENTITY = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});|&(?:nbsp|amp|quot)(?![A-Za-z0-9;=])"
)
WRITTEN_BREAK = re.compile(r"(?:\\r)?\\n|\\r")  # as WooCommerce exports a line break
ROUNDS = 3  # feeds escape what is escaped


def without_markup(text: str) -> str:
    """The text as a browser would show it; the same text if it has no markup."""
    if "\\" in text:
        text = WRITTEN_BREAK.sub(" ", text)
    for _ in range(ROUNDS):
        plain = _unescaped(_untagged(text))
        if plain == text:
            break
        text = plain
    return text


def _untagged(text):
    if "<" not in text and "]]>" not in text:
        return text
    for start, end in HIDDEN:
        text = _without(text, start, end)
    text = DECLARATION.sub(" ", text)
    return CUT_OFF.sub(" ", INLINE_TAG.sub("", BLOCK_TAG.sub(" ", text)))


def _without(text, start, end):
    """The text without what is between two marks, each found once: no hostile text takes long."""
    lower = text.lower() if len(text.lower()) == len(text) else text
    kept, at = [], 0
    while (first := lower.find(start, at)) >= 0 and (last := lower.find(end, first)) >= 0:
        kept += [text[at:first], " "]
        at = last + len(end)
    return "".join([*kept, text[at:]])


def _unescaped(text):
    return ENTITY.sub(_character, text) if "&" in text else text


def _character(match):
    entity = match.group()
    known = entity[1] == "#" or not entity.endswith(";") or entity[1:] in html5
    return html.unescape(entity).replace("\xad", "") if known else entity

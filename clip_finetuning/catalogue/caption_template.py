"""Captions put together from several fields: `"{title}. {colour} {material}."`."""

import re
from string import Formatter

# Stand for a filled and for an empty field while the separators between them are settled.
FILLED, EMPTY = "\x01", "\x00"
SEPARATOR = rf"[^\w{FILLED}{EMPTY}]*"
AROUND_EMPTY = re.compile(f"{SEPARATOR}(?:{EMPTY}{SEPARATOR})+")
OPENING, CLOSING = set("([{"), set(")]}")


def template_fields(template: str) -> list[str]:
    """The field names of a template, in order. Raises ValueError for a template that cannot be filled."""
    try:
        parts = [(field, spec or conversion) for _, field, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"caption template {template!r} is not well-formed ({error}); write {{column}}") from None
    fields = [field for field, _ in parts if field is not None]
    if not fields or not all(fields):
        raise ValueError(f"caption template {template!r} must name columns in braces, such as '{{title}}. {{colour}}.'")
    if any(extra for _, extra in parts):
        raise ValueError(f"caption template {template!r} takes plain {{column}} fields, without ':' or '!'")
    return fields


def fill_template(template: str, values: dict[str, str]) -> str:
    """The template with its fields from {name: text}. Blank if all of them are.

    An empty field takes its separators with it: of those on both sides the stronger one stays ('. ' before ', ' before
    ' '), an empty pair of brackets goes. A field that ends its own sentence gets no second full stop.
    """
    skeleton, filled = "", []
    for literal, field, _, _ in Formatter().parse(template):
        text = values[field] if field is not None else ""
        skeleton += literal + (FILLED if text else EMPTY if field is not None else "")
        filled += [text] if text else []
    if not filled:
        return ""
    skeleton, texts = AROUND_EMPTY.sub(_strongest, skeleton), iter(filled)
    return " ".join(re.sub(f"{FILLED}\\.?", lambda match: _ended(next(texts), match.group()[1:]), skeleton).split())


def _strongest(match):
    """The separator that stays of those around one or more empty fields."""
    if match.start() == 0:
        return ""
    parts = match.group().split(EMPTY)
    if OPENING & set(match.group()) and CLOSING & set(match.group()):
        parts = [re.sub(r"[()\[\]{}]", "", part) for part in parts]
    return max(parts, key=_strength)


def _strength(separator):
    for strength, signs in ((4, OPENING | CLOSING), (3, set(".!?;"))):
        if signs & set(separator):
            return strength
    return 2 if separator.strip() else len(separator[:1])


def _ended(text, stop):
    return text if text.endswith((".", "!", "?")) else text + stop

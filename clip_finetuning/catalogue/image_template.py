"""Names of pictures put together from columns: `"{article_id:0>10|:3}/{article_id:0>10}.jpg"`.

After the colon stand steps, separated by `|`: `0>10` fills up to ten characters with zeros on the left (as Python's
formats do; `10` of digits alone too), `:3`, `-2:` or `4:6` take a part (as Python's slices do). They are done in order.
"""

import re
from collections.abc import Callable
from string import Formatter

FILL = re.compile(r"(?P<fill>.)(?P<side>[<>])(?P<width>\d{1,3})|0(?P<digits>\d{1,3})")
PART = re.compile(r"(-?\d{1,3})?:(-?\d{1,3})?")


def image_template_fields(template: str) -> list[str]:
    """The field names of a template, in order. Raises ValueError for a template that cannot be filled."""
    return [field for _, field, _ in _parts(template) if field is not None]


def fill_image_template(template: str, values: dict[str, str]) -> str:
    """The template with its fields from {name: text}; blank if one of them is, as it names no picture then."""
    name = ""
    for literal, field, steps in _parts(template):
        name += literal
        if field is None:
            continue
        text = values[field]
        if not text:
            return ""
        for step in steps:
            text = step(text)
        name += text
    return name


def _parts(template: str) -> list[tuple[str, str | None, list[Callable[[str], str]]]]:
    """[(text before, field or None, its steps)]."""
    try:
        parts = [(literal, field, spec or "", mark) for literal, field, spec, mark in Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"image template {template!r} is not well-formed ({error}); write {{column}}.jpg") from None
    fields = [field for _, field, _, _ in parts if field is not None]
    if not fields or not all(fields) or any(mark for *_, mark in parts):
        raise ValueError(f"image template {template!r} must name columns in braces, such as '{{id:0>10}}.jpg'")
    return [
        (literal, field, [_step(step, template) for step in spec.split("|")] if spec else [])
        for literal, field, spec, _ in parts
    ]


def _step(step: str, template: str) -> Callable[[str], str]:
    if part := PART.fullmatch(step):
        begin, end = (int(number) if number else None for number in part.groups())
        return lambda text: text[begin:end]
    if fill := FILL.fullmatch(step):
        width = int(fill["width"] or fill["digits"])
        if fill["side"] == "<":
            return lambda text: text.ljust(width, fill["fill"])
        return lambda text: text.rjust(width, fill["fill"] or "0")
    raise ValueError(
        f"image template {template!r} has the step {step!r}; a step fills up ('0>10') or takes a part (':3', '-2:'), "
        "and '|' stands between steps: '{id:0>10|:3}'"
    )

"""Rows of JSON files: an object a line, or one array of objects."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path

from clip_finetuning.catalogue.encodings import find_encoding, open_lines
from clip_finetuning.catalogue.nested import ABSENT, field, with_fields
from clip_finetuning.catalogue.remarks import Remarks
from clip_finetuning.runtime.text import text_of

KEYS_FROM = 1_000  # rows that tell the columns: not every object has every key
NO_OBJECT = "line that is no JSON object"
decode = json.JSONDecoder(parse_float=Decimal).decode  # a float would round long numbers

Records = Iterator[tuple[str, dict | str]]


def read_json(
    path: Path, needed: Sequence[str], remarks: Remarks, given: str | None = None
) -> tuple[list[str], Records]:
    """(the names of a file's columns; (where, object) of each row, or the reason why it cannot be read).

    Raises ValueError for a file that is neither an object a line nor an array of objects.
    """
    encoding = find_encoding(path, given)
    by_line = _is_by_line(path, encoding, needed)

    read = partial(_of_lines if by_line else _of_document, path, encoding, needed)
    names: dict[str, None] = {}
    for _, values in islice(read(Remarks()), KEYS_FROM):
        if isinstance(values, dict):
            names |= dict.fromkeys([*values, *(name for name in needed if field(values, name) is not ABSENT)])
    rows = (
        (where, values if isinstance(values, str) else with_fields(values, needed)) for where, values in read(remarks)
    )
    return list(names), rows


def _is_by_line(path, encoding, needed):
    """Whether it is a file of an object a line, by its first two lines that are not blank."""
    with open_lines(path, encoding) as lines:
        first = [line.text.strip() for line in islice((line for line in lines if line.text.strip()), 2)]
    if not first or (len(first) == 2 and first[0][0] == first[1][0] == "{"):
        return True
    if first[0][0] == "[":
        return path.suffix.lower() != ".json" and len(first[0]) > 1 and not first[0].startswith("[{")
    values = _parsed(first[0])
    if isinstance(values, dict):
        nested = all(isinstance(value, dict) for value in values.values())
        return len(first) == 2 or (not nested and any(field(values, name) is not ABSENT for name in needed))
    return path.suffix.lower() != ".json"


def _of_lines(path, encoding, _, remarks):
    with open_lines(path, encoding) as lines:
        for number, line in enumerate(lines, 1):
            if line.text.strip():
                where, values = f"{path.name}:{number}", _parsed(line.text)
                if line.guessed:
                    remarks.count(encoding.guess_said(), f"{where}: {line.text}")
                yield where, values if isinstance(values, dict) else NO_OBJECT


def _of_document(path, encoding, needed, remarks):
    with open_lines(path, encoding) as lines:
        parts = list(lines)
    guessed = next((line.text for line in parts if line.guessed), None)
    if guessed is not None:
        remarks.note(f"the file {encoding.guess_said().removeprefix('are ')} ({guessed.strip()[:60]})")
    try:
        values = decode("".join(line.text for line in parts))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it anew") from error
    for number, value in enumerate(_rows_of(path, values, needed), 1):
        yield f"{path.name}:{number}", value if isinstance(value, dict) else NO_OBJECT


def _rows_of(path, values, needed):
    """The rows of a document: an array, the one array of objects in an object, or one of the forms that pandas writes."""
    if isinstance(values, list):
        return values
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no table: it must be an array of objects, or an object a line")
    if isinstance(values.get("columns"), list) and isinstance(values.get("data"), list):
        names = list(map(text_of, values["columns"]))
        return [dict(zip(names, row)) if isinstance(row, list) else row for row in values["data"]]
    inside = list(values.values())
    arrays = [value for value in inside if isinstance(value, list) and any(isinstance(one, dict) for one in value)]
    if len(arrays) == 1 and not set(needed) <= set(values):
        return arrays[0]
    if inside and all(isinstance(value, dict) for value in inside):
        if not set(needed) <= set(values):
            return inside  # a row under each key
        places = dict.fromkeys(place for column in inside for place in column)
        return [{name: column[place] for name, column in values.items() if place in column} for place in places]
    return [values]


def _parsed(text):
    try:
        return decode(text)
    except (ValueError, RecursionError):
        return None

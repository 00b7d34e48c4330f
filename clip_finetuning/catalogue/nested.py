"""Fields inside fields: `variants.0.sku` is the key `sku` of the first of `variants`."""

from collections.abc import Iterable
from typing import Any

ABSENT = object()


def with_fields(record: dict, names: Iterable[str]) -> dict:
    """A record with the fields that dotted names reach, None for those that it lacks. A key of the very name wins."""
    missing = [name for name in names if name not in record]
    if not missing:
        return record
    found = {name: field(record, name) for name in missing}
    return {**record, **{name: None if value is ABSENT else value for name, value in found.items()}}


def field(value: Any, name: str) -> Any:
    """What a dotted name reaches, or ABSENT. Of keys that hold dots themselves the longest is tried first."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            key, rest = ".".join(parts[:count]), ".".join(parts[count:])
            if key in value:
                found = field(value[key], rest)
                if found is not ABSENT:
                    return found
        return ABSENT
    first, _, rest = name.partition(".")
    if isinstance(value, list) and first.isdecimal() and int(first) < len(value):
        return field(value[int(first)], rest) if rest else value[int(first)]
    return ABSENT

"""Shard patterns: `webdataset_shards/clip_dataset_train.{000000..000260}.tar` -> the shards it names, or what is missing.

A pattern has braces as above or `{a,b}`, globs (`*`, `?`, `[0-9]`), or is a plain path; several are joined by `::`.
URLs (`https://`, `s3://`, `pipe:COMMAND`, ...) take braces alone, since no folder can be listed there.
"""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterable
from urllib.parse import urlparse
from urllib.request import url2pathname

from braceexpand import UnbalancedBracesError, braceexpand  # pyright: ignore[reportAttributeAccessIssue]

URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: `C:\shards` is a local path
LISTED = 5  # names that a message spells out
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
COMPARED = 100_000  # shards of a pattern that a file names


def is_url(path: str) -> bool:
    """Whether it can only be streamed; `file:` URLs are local paths."""
    return URL.match(path) is not None and not path.startswith("file:")


def names_url(pattern: str) -> bool:
    """Whether a shard of the pattern would be fetched, or made by a command."""
    return any(is_url(shard) for part in pattern.split("::") for shard in _expand_part(part.strip()))


def expand_pattern(pattern: str) -> list[str]:
    """The shards of a pattern, in its order. Raises FileNotFoundError with what is missing and what would match."""
    shards = [shard for part in pattern.split("::") for shard in _expand_part(part.strip())]
    missing = [shard for shard in shards if not is_url(shard) and not os.path.isfile(shard)]
    if missing:
        raise FileNotFoundError(_missing_message(pattern, shards, missing))
    return shards


def in_common(pattern: str, other: str) -> list[str]:
    """The shards of a pattern that another one names too, by whatever path; those of the other need not be in reach.

    `other` may be what a file says, so it is compared and never searched for.
    """
    named, globs = set(), []
    for shard in (shard for part in other.split("::") for shard in _named(part.strip())):
        named.add(_identity(shard))
        globs += [os.path.realpath(shard)] if glob.has_magic(shard) and not is_url(shard) else []
    return [
        shard
        for shard in expand_pattern(pattern)
        if _identity(shard) in named or any(fnmatch.fnmatch(os.path.realpath(shard), one) for one in globs)
    ]


def _named(part: str) -> list[str]:
    """The first of the shards that a file names by braces; a part of more than anybody has is one odd name."""
    if part.count("{") > 8 or any(
        max(map(len, ends)) > 9 or abs(int(ends[1]) - int(ends[0])) > COMPARED for ends in RANGE.findall(part)
    ):
        return [part]
    try:
        return list(itertools.islice(braceexpand(part, escape=False), COMPARED))
    except UnbalancedBracesError:
        return [part]


def _identity(shard: str) -> object:
    """Equal for paths of one file, by links too."""
    if is_url(shard):
        return shard
    path = url2pathname(urlparse(shard).path) if shard.startswith("file:") else shard
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path) if "\0" not in path else path
    return found.st_dev, found.st_ino


def _expand_part(part: str) -> list[str]:
    if part.startswith("file:"):
        part = url2pathname(urlparse(part).path)
    if not part:
        raise ValueError("the shard pattern is empty; give one such as webdataset_shards/NAME.{000000..000006}.tar")
    if not is_url(part) and os.path.isfile(part):
        return [part]
    try:  # no escapes: a Windows path is full of backslashes
        shards = list(braceexpand(part, escape=False))
    except UnbalancedBracesError:
        raise ValueError(f"the shard pattern {part!r} has a brace without its partner") from None
    return [match for shard in shards for match in _expand_glob(shard)]


def _expand_glob(shard: str) -> list[str]:
    if is_url(shard) or os.path.isfile(shard) or not glob.has_magic(shard):
        return [shard]
    return sorted(path for path in glob.glob(shard, recursive=True) if os.path.isfile(path)) or [shard]


def pattern_of(paths: Iterable[str]) -> str:
    """A pattern that matches exactly these shards: runs of numbers of one width in braces, joined by `::`."""
    runs = []  # [prefix, first, last, width, suffix]
    for path in sorted(paths):
        folder, name = os.path.split(path)
        numbers = list(re.finditer(r"\d+", name))
        if not numbers:
            runs.append([path, None, None, 0, ""])
            continue
        digits = numbers[-1]
        prefix = os.path.join(folder, name[: digits.start()])
        number, width, suffix = int(digits.group()), len(digits.group()), name[digits.end() :]
        if runs and runs[-1][0] == prefix and runs[-1][2] == number - 1 and runs[-1][3:] == [width, suffix]:
            runs[-1][2] = number
        else:
            runs.append([prefix, number, number, width, suffix])
    return "::".join(_run_pattern(*run) for run in runs)


def _run_pattern(prefix, first, last, width, suffix):
    if first is None or first == last:
        return prefix + ("" if first is None else f"{first:0{width}d}") + suffix
    return f"{prefix}{{{first:0{width}d}..{last:0{width}d}}}{suffix}"


def _missing_message(pattern, shards, missing):
    if len(missing) == len(shards):
        message = f"no shard matches {pattern!r}"
    else:
        names = ", ".join(os.path.basename(path) for path in missing[:LISTED])
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        message = f"{len(missing)} of the {len(shards)} shards of {pattern!r} are missing: {names}{more}"
    return f"{message}; {_remedy(missing)}"


def _remedy(missing):
    """What to write instead, from the tars that lie in the folders of the missing shards."""
    folders = list(dict.fromkeys(path if os.path.isdir(path) else os.path.dirname(path) for path in missing))
    absent = [folder for folder in folders if not os.path.isdir(folder or ".")]
    if absent:
        return f"the folder {absent[0]!r} does not exist (the current folder is {os.getcwd()!r})"
    present = [path for folder in folders for path in glob.glob(os.path.join(glob.escape(folder), "*.tar"))]
    stems = {_stem(path) for path in missing}
    alike = [path for path in present if _stem(path) in stems] or present
    if not alike:
        return f"{folders[0] or os.getcwd()!r} holds no .tar file; write shards with create_webdataset.py"
    return f"this matches what is there: {pattern_of(alike)}"


def _stem(path):
    """The data set that a shard belongs to: its name up to its number."""
    return re.split(r"[.\-_]?[\d{*?\[]", os.path.basename(path))[0]

"""Which files of a tar are one sample, told by their names and their order: one rule for local shards and streams.

A name is split at the dot before the longest known suffix: `sku.2.jpg` is the picture of `sku.2`, `x.txt0.txt` a text of `x`.
Files that lie side by side and begin alike up to the first dot - webdataset's key - are looked at together: there the text
`1.txt` goes to the pictures `1.front.jpg` and `1.back.jpg`, as no `1.jpg` has it; `1.en.txt` and `1.jpg.json` go to `1.jpg`;
and `1.seg.png` beside a `1.jpg` with a text is no sample of its own.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from clip_finetuning.loading.sample import is_picture, is_text, split_name
from clip_finetuning.loading.tar_format import AFTER_END, ShardDamage

NO_SAMPLE = re.compile(r"__MACOSX/|__[^/]*__(?:$|/)")  # what zip and webdataset put beside the samples
MOST_NAMES = 100  # that are looked at together: what a stream holds back stays bounded
T = TypeVar("T")
Run = dict[str, dict[str, T]]  # neighbours: key -> suffix -> value


class Grouped(NamedTuple):
    """A sample, or what there is of one."""

    key: str
    files: dict[str, Any]  # suffix -> value
    has_more: bool = False  # files that would belong to it as well, and are not used

    @property
    def has_picture(self) -> bool:
        return any(map(is_picture, self.files))

    @property
    def has_text(self) -> bool:
        return any(map(is_text, self.files))


def root_of(key: str) -> str:
    """The part of a key that webdataset takes for it: up to the first dot of its file name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def runs(members: Iterable[tuple[str, T]]) -> Iterator[Run[T]]:
    """(name, value) of a tar's files -> those of one root that are neighbours; a file met twice begins another run.

    If the tar breaks off, what may be incomplete of the last run is dropped, and ShardDamage raised again.
    """
    run: Run[T] = {}
    root = last = before = None  # `before`: the suffixes of the run before
    try:
        for name, value in members:
            key, suffix = split_name(name)
            if key.endswith("/") or not key or NO_SAMPLE.match(name):  # ._x.jpg, __meta__: not samples
                continue
            this_root = root_of(key)
            is_full = len(run) >= MOST_NAMES and key not in run
            if run and (this_root != root or suffix in run.get(key, ()) or is_full):
                yield run
                before, run = _suffixes(run), {}
            root, last = this_root, key
            run.setdefault(key, {})[suffix] = value
    except ShardDamage as damage:
        if damage.reason != AFTER_END and last is not None:
            run = _without_cut_files(run, root, last, before, damage.member)
        if run:
            yield run
        raise
    if run:
        yield run


def _suffixes(run):
    return {suffix for files in run.values() for suffix in files}


def _without_cut_files(run, root, last, before, cut_name):
    """The last run before damage without what may be incomplete: of the file that is cut, or that comes last."""
    if cut_name:
        cut = split_name(cut_name)[0]
        return run if root_of(cut) != root else {key: files for key, files in run.items() if not are_related(key, cut)}
    others = [key for key in run if not are_related(key, last)]
    expected = [before] if before else []
    expected += [set(run[others[-1]])] if others else []
    found = [_suffixes(run)] if before else []
    found += [set(run[last])] if others else []
    if expected and all(wanted <= there for wanted, there in zip(expected, found)):
        return run
    return {key: run[key] for key in others}


def are_related(key: str, other: str) -> bool:
    """Whether a name is the other one, or goes on after it with a dot."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def shorter(key: str) -> Iterator[str]:
    """What a key goes on from: `a.b.c` -> `a.b`, `a`."""
    folder, slash, name = key.rpartition("/")
    while "." in name:
        name = name.rpartition(".")[0]
        yield folder + slash + name


def is_part_of(name: str, sample: Grouped) -> bool:
    """Whether a file of this name belongs to a sample that lacks its picture or its text."""
    return not (sample.has_picture and sample.has_text) and are_related(split_name(name)[0], sample.key)


def resolve(run: Run[T]) -> list[Grouped]:
    """The samples of a run, and what there is of incomplete ones."""
    if len(run) == 1:
        ((key, files),) = run.items()
        return [Grouped(key, files)]
    pictures = {key: dict(files) for key, files in run.items() if any(map(is_picture, files))}
    texts = {key: files for key, files in run.items() if key not in pictures and any(map(is_text, files))}
    has_more, used = set(), set()
    for key, files in pictures.items():  # 1.front.jpg takes 1.txt
        for above in shorter(key):
            if above in pictures:
                break
            if above in texts:
                pictures[key] = files = {**texts[above], **files}
                used.add(above)
    for key, files in texts.items():  # 1.jpg takes 1.en.txt
        owner = next((above for above in shorter(key) if above in pictures), None)
        if owner and key not in used:
            new = {suffix: value for suffix, value in files.items() if suffix not in pictures[owner]}
            pictures[owner].update(new)
            used.add(key)
            if len(new) < len(files):
                has_more.add(owner)
    for key in list(pictures):  # 1.seg.png beside 1.jpg and 1.txt
        owner = next((above for above in shorter(key) if above in pictures), None)
        if owner and not any(map(is_text, pictures[key])) and any(map(is_text, pictures[owner])):
            del pictures[key]
            has_more.add(owner)
    whole = [Grouped(key, files, key in has_more) for key, files in pictures.items()]
    return whole + [Grouped(key, files) for key, files in texts.items() if key not in used]


# ------------------------------------------------------------------------------------ files that are no neighbours


class Joined(NamedTuple):
    """The runs of a whole tar after those of one root were put together."""

    runs: list[Run[Any]]
    ambiguous: list[tuple[str, int]]  # (key, how many) of samples whose files cannot be told apart
    joined: set[str]  # the roots that were put together


def join(all_runs: Sequence[Run[T]]) -> Joined:
    """Put the files of a key together wherever they lie in the tar, as in one of all pictures, then all texts.

    A key that comes twice is two samples: those that are whole stay as they are, and of the others the n-th picture has
    the n-th text, if there are as many of each.
    """
    of_root: dict[str, list[int]] = collections.defaultdict(list)
    for number, run in enumerate(all_runs):
        of_root[root_of(next(iter(run)))].append(number)
    result: dict[int, list[Run[T]]] = {}
    ambiguous, joined = [], set()
    for root, numbers in of_root.items():
        parts = [all_runs[number] for number in numbers]
        if len(parts) == 1 or all(map(_is_whole, parts)):
            result.update((number, [run]) for number, run in zip(numbers, parts))
            continue
        joined.add(root)
        layers = _layers(parts)
        if len(layers) > 1:  # something comes twice
            whole = [number for number in numbers if _is_whole(all_runs[number])]
            result.update((number, [all_runs[number]]) for number in whole)
            numbers = [number for number in numbers if number not in whole]
            layers = _layers([all_runs[number] for number in numbers])
            ambiguous += _take_ambiguous(layers)
        result[numbers[0]] = [layer for layer in layers if layer]
    return Joined([run for _, parts in sorted(result.items()) for run in parts], ambiguous, joined)


def _is_whole(run):
    return all(sample.has_picture and sample.has_text for sample in resolve(run))


def _layers(parts):
    """Runs -> one that has the first file of each name, one that has the second, ..."""
    layers: list[Run] = []
    for part in parts:
        for key, files in part.items():
            for suffix, value in files.items():
                free = next((layer for layer in layers if suffix not in layer.get(key, ())), None)
                if free is None:
                    free = {}
                    layers.append(free)
                free.setdefault(key, {})[suffix] = value
    return layers


def _take_ambiguous(layers):
    """Take the names out whose files come in different numbers -> (name, how many samples) of them."""
    found = []
    for key, files in list(layers[0].items()) if len(layers) > 1 else []:
        if any(set(layer[key]) != set(files) for layer in layers if key in layer):
            found.append((key, sum(layer.pop(key, None) is not None for layer in layers)))
    return found

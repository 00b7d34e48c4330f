"""A source's pictures -> an index folder. Only what is new is embedded, and the old state stays until the new one is whole.

The steps of a run: what the folder knows already; embedding what it does not (kept as it comes, so that a run that was
killed goes on); the files of a new generation; one step that lets them be the index.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.loading.source import Options
from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.distributed import Ranks
from clip_finetuning.runtime.version import version
from clip_finetuning.search import folder as files
from clip_finetuning.search import scan as scans
from clip_finetuning.search.database import Store, write_items
from clip_finetuning.search.embedding import embed_new
from clip_finetuning.search.index import Index
from clip_finetuning.search.query import model_hash
from clip_finetuning.search.reading import Row, block_loader, content_of, unique_keys
from clip_finetuning.search.source import Opened

try:
    import fcntl
except ImportError:  # Windows, where a second writer fails on the open files
    fcntl = None

SCAN_FROM = 5000  # distinct pictures; scoring each of fewer takes about a millisecond
MEASURED = 200  # queries, by which the scan's recall is measured
FRESH = 0.2  # share of the pictures that a quantiser was not trained with, from which another one is trained
log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """How a run reads and embeds."""

    batch_size: int
    num_workers: int
    precision: str
    ranks: Ranks = Ranks(0, 1, 0)

    @property
    def options(self) -> Options:
        """Which part of a source this process reads."""
        return Options(self.batch_size, train=False, rank=self.ranks.rank, world_size=self.ranks.world_size)


def build(
    opened: Opened, folder: str | os.PathLike, clip_model: ClipModel, named: dict[str, Any], settings: Settings
) -> dict[str, Any] | None:
    """Write or renew the index of a source -> what index.json says; None on all ranks but 0.

    `named`: what index.json says of how the model is had again - name, pretrained, checkpoint, seed. Raises ValueError
    if no picture can be used, OSError for a full disk; either way the old index stays as it was.
    """
    about_model = {**named, "hash": model_hash(clip_model), "precision": settings.precision}
    if settings.ranks.rank:
        _embed(opened, clip_model, settings, distributed.agree(None), None)
        return None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old = _old_index(folder, about_model)
        store = Store(folder, f"{about_model['hash']} {settings.precision}")
        try:
            known = distributed.agree(_known(old, store, _dimensions(clip_model)))
            rows, counts = _embed(opened, clip_model, settings, known, store)
            return renew(folder, old, store, rows, counts, about_model, _dimensions(clip_model))
        finally:
            store.close()


def precision_of(folder: str | os.PathLike) -> str | None:
    """The precision of the index that a folder holds, so that `auto` does not choose another one; None for no index."""
    try:
        return files.read_about(folder)["model"]["precision"]
    except (ValueError, OSError):
        return None


def _dimensions(clip_model: ClipModel) -> int:
    return int(clip_model.config["embed_dim"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else writes this index meanwhile. Raises ValueError if somebody does."""
    with open(folder / ".lock", "wb") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run is writing the index {folder}; wait for it") from None
            except OSError:  # a file system without locks
                pass
        yield


# --------------------------------------------------------------------------------------------------- what is known


class Known(NamedTuple):
    """What need not be embedded: contents, int64 ascending."""

    pictures: np.ndarray
    captions: np.ndarray


def _old_index(folder: Path, about_model: dict[str, Any]) -> Index | None:
    """The state that is to be renewed, if its vectors are this model's; it says so where they are not."""
    try:
        about = files.read_about(folder)
        same = all(about["model"][name] == about_model[name] for name in ("hash", "precision"))
        if same:
            return Index.open(folder)
        log.warning("the index %s is of another model or precision: every picture is embedded again", folder)
    except FileNotFoundError:
        pass
    except ValueError as error:
        log.warning("%s: every picture is embedded again", str(error).partition(f"; {files.AGAIN}")[0])
    return None


def _known(old: Index | None, store: Store, dimensions: int) -> Known:
    pictures, captions = (store.pending(kind, dimensions)[0] for kind in ("picture", "caption"))
    if old is not None:
        pictures = np.union1d(pictures, old.content)
        captions = np.union1d(captions, np.fromiter(map(content_of, old.captions()), np.int64))
    return Known(np.intersect1d(pictures, store.thumbnails()), captions)


def _embed(
    opened: Opened, clip_model: ClipModel, settings: Settings, known: Known, store: Store | None
) -> tuple[list[Row], dict[str, Any]]:
    transform = clip.image_transform(clip_model, train=False)
    loader = block_loader(opened, settings.options, transform, known.pictures, settings.num_workers)
    rows, counts = embed_new(clip_model, loader, set(known.captions.tolist()), store, settings.precision)
    loader.close()
    return rows, counts


# ------------------------------------------------------------------------------------------------- the new state


def renew(
    folder: Path,
    old: Index | None,
    store: Store,
    rows: list[Row],
    counts: dict[str, Any],
    about_model: dict[str, Any],
    dimensions: int,
) -> dict[str, Any]:
    """Let the rows be the index, unless they are it already -> what index.json says, with `changes` of this run."""
    if not rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts["skipped"].items())
        raise ValueError(f"no picture could be indexed ({reasons or 'the source is empty'}); {folder} is as it was")
    rows, renamed = unique_keys(rows)
    changes = _changes(old, rows)
    counts = {
        "pictures": len(rows),
        "products": len({row.product_id for row in rows}),
        "categories": len({row.category for row in rows} - {""}),
        "captions": len({row.caption for row in rows} - {""}),
        **counts,
        "renamed": renamed,
    }
    state = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    about_model = {**about_model, "dimensions": dimensions}
    if old is not None and old.about.get("state") == state and old.about["model"] == about_model:
        about = {**old.about, "counts": counts}
    else:
        files.remove_other_generations(folder, old.about["generation"] if old is not None else _valid(folder))
        place = files.new_generation(folder)
        scan = _write(place, old, store, rows, dimensions)
        about = {
            "version": version(),
            "model": about_model,
            "counts": counts,
            "state": state,
            "scan": scan,
        }
        about = files.publish(folder, place, about)
        files.remove_other_generations(folder, about["generation"])
    store.finish(row.content for row in rows)
    return about | {"changes": changes}


def _valid(folder: Path) -> str | None:
    """The generation of an index whose vectors are of no use, but which stays until the new one is whole."""
    try:
        return files.read_about(folder)["generation"]
    except (ValueError, OSError):
        return None


def _changes(old: Index | None, rows: list[Row]) -> dict[str, int]:
    """How many pictures are new, changed and gone since the old state, by their keys."""
    before = dict(old.contents_by_key()) if old is not None else {}
    now = {row.image_key: row.content for row in rows}
    return {
        "added": len(now.keys() - before.keys()),
        "changed": sum(before[key] != now[key] for key in now.keys() & before.keys()),
        "removed": len(before.keys() - now.keys()),
    }


def _write(place: Path, old: Index | None, store: Store, rows: list[Row], dimensions: int) -> dict[str, Any] | None:
    """The files of a generation -> what index.json says of its scan, None if it has none."""
    contents = np.array([row.content for row in rows], dtype=np.int64)
    before = None if old is None else (old.content, old.vectors)
    vectors = _vectors(contents, store.pending("picture", dimensions), before)
    captions, caption_vectors = _captions(rows, store.pending("caption", dimensions), old)
    numbers = {caption: number for number, caption in enumerate(captions)}
    categories = sorted({row.category for row in rows})
    products = {product: number for number, product in enumerate(dict.fromkeys(row.product_id for row in rows))}
    of_category = {category: number for number, category in enumerate(categories)}
    columns = [
        (row.content, products[row.product_id], of_category[row.category], numbers.get(row.caption, -1), -1)
        for row in rows
    ]
    columns = np.array(columns, dtype=np.int64)
    scan = _write_scan(place, old, columns, vectors, caption_vectors)
    _save(place / files.VECTORS, vectors)
    _save(place / files.CAPTIONS, caption_vectors)
    _save(place / files.ROWS, columns)
    every_text = dict.fromkeys([*captions, *(row.caption for row in rows if row.caption)])
    of_text = {text: number for number, text in enumerate(every_text)}
    items = ((*row[:4], of_text.get(row.caption), row.content) for row in rows)
    write_items(place / files.ITEMS, items, every_text, categories)
    return scan


def _save(path: Path, array: np.ndarray) -> None:
    """By write calls, not through a map: a full disk is then an error, not the end of the process."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _vectors(
    contents: np.ndarray, pending: tuple[np.ndarray, np.ndarray], old: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """The vector of each content (n,), from this run's or the old state's -> (n, D)."""
    fresh, fresh_vectors = pending
    places = np.searchsorted(fresh, contents).clip(max=max(len(fresh) - 1, 0))
    found = fresh[places] == contents if len(fresh) else np.zeros(len(contents), bool)
    vectors = np.empty((len(contents), fresh_vectors.shape[1]), np.float32)
    vectors[found] = fresh_vectors[places[found]]
    if not found.all():
        assert old is not None, "what is not pending is of the old state"
        order = np.argsort(old[0], kind="stable")
        places = order[np.searchsorted(old[0][order], contents[~found])]
        vectors[~found] = old[1][places]
    return vectors


def _captions(
    rows: list[Row], pending: tuple[np.ndarray, np.ndarray], old: Index | None
) -> tuple[list[str], np.ndarray]:
    """(distinct captions that have a vector, in the order of the source; their vectors (M, D))."""
    texts = list(dict.fromkeys(row.caption for row in rows if row.caption))
    contents = np.array([content_of(text) for text in texts], dtype=np.int64)
    known = pending[0]
    before = None
    if old is not None:
        before = (np.fromiter(map(content_of, old.captions()), np.int64), old.caption_vectors)
        known = np.union1d(known, before[0])
    has_vector = np.isin(contents, known)
    kept = [text for text, has in zip(texts, has_vector) if has]
    return kept, _vectors(contents[has_vector], pending, before)


# ------------------------------------------------------------------------------------------------------ the scan


def _write_scan(
    place: Path, old: Index | None, columns: np.ndarray, vectors: np.ndarray, caption_vectors: np.ndarray
) -> dict[str, Any] | None:
    """Codes by the old state's quantiser while it knows most pictures and finds enough, else by a new one.

    Fills the last of `columns` (N, 5): the number of each picture's code.
    """
    contents = np.unique(columns[:, 0])
    if len(contents) < SCAN_FROM:
        return None
    random = np.random.default_rng(0)
    asked = caption_vectors if len(caption_vectors) else vectors
    queries = asked[np.sort(random.choice(len(asked), min(MEASURED, len(asked)), replace=False))]
    about = None
    for quantizer, fresh in _quantizers(old, contents, vectors):
        codes, code_of = scans.distinct(scans.encoded(quantizer, vectors))
        tuning = scans.tuned(scans.Scan(quantizer, codes, code_of), vectors, columns[:, 1], queries)
        about = {**tuning._asdict(), "fresh": fresh}
        if tuning.reach is not None:
            columns[:, 4] = code_of
            _save(place / files.CODES, codes)
            _save(place / files.QUANTIZER, quantizer)
            break
    return about


def _quantizers(old: Index | None, contents: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """(a quantiser, how many pictures have come since it was trained): the old state's if it may do, then a new one."""
    if old is not None and old.scan is not None:
        fresh = old.about["scan"]["fresh"] + int((~np.isin(contents, old.content)).sum())
        if fresh <= FRESH * len(contents):
            yield old.scan.quantizer, fresh
    yield scans.trained(vectors), 0

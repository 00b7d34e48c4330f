"""The SQLite files of an index: read as data, with no code of the file's own to run, and written whole."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from clip_finetuning.search import folder as files


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that reads a finished file, from any thread. Raises ValueError if there is no database."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; {files.AGAIN}")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")  # a view or trigger of somebody's file calls nothing
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be read ({error}); {files.AGAIN}") from None
    return connection


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """SQLite's errors as those of files: OSError for a full disk and the like, ValueError for damage."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            number = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(number, f"{error}; the index is as it was", str(path)) from None
        raise ValueError(f"{path} is damaged ({error}); delete it, and {files.AGAIN}") from None


class Store:
    """The thumbnails of every content (`pictures.sqlite`), and what a run that is not finished has embedded.

    Each `add` is on the disk when it returns, so that a run that is killed goes on from there; what was embedded by
    another model is forgotten.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.pictures, self.pending_file = folder / files.PICTURES, folder / files.PENDING
        self._pictures = _created(self.pictures, "thumbnails (content INTEGER PRIMARY KEY, jpeg BLOB NOT NULL)")
        vectors = "vectors (model TEXT, kind TEXT, content INTEGER, vector BLOB, PRIMARY KEY (model, kind, content))"
        self._pending, self.model = _created(self.pending_file, vectors), model

    def thumbnails(self) -> np.ndarray:
        """The contents that have one, (n,) int64 ascending."""
        with errors_of(self.pictures):
            found = self._pictures.execute("SELECT content FROM thumbnails ORDER BY content").fetchall()
        return np.array(found, dtype=np.int64).reshape(-1)

    def add(self, kind: str, contents: Sequence[int], vectors: np.ndarray, thumbnails: Sequence[bytes] = ()) -> None:
        """Keep what a part of a run has embedded: kind `picture` or `caption`, vectors (n, D)."""
        with errors_of(self.pictures), self._pictures:
            self._pictures.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", zip(contents, thumbnails))
        rows = [(self.model, kind, content, vector.tobytes()) for content, vector in zip(contents, vectors)]
        with errors_of(self.pending_file), self._pending:
            self._pending.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def pending(self, kind: str, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """(contents (n,) int64 ascending, vectors (n, D) float32) of a run that is not finished."""
        of = (self.model, kind, 4 * dimensions)
        where = "FROM vectors WHERE model = ? AND kind = ? AND length(vector) = ?"
        with errors_of(self.pending_file):
            (count,) = self._pending.execute(f"SELECT count(*) {where}", of).fetchone()
            contents, vectors = np.empty(count, np.int64), np.empty((count, dimensions), np.float32)
            found = self._pending.execute(f"SELECT content, vector {where} ORDER BY content", of)
            for place, (content, vector) in enumerate(found):
                contents[place], vectors[place] = content, np.frombuffer(vector, np.float32)
        return contents, vectors

    def finish(self, contents: Iterable[int]) -> None:
        """The run is over: what it had embedded is in the index, and thumbnails of no other contents are needed."""
        with errors_of(self.pictures), self._pictures:
            self._pictures.execute("CREATE TEMP TABLE used (content INTEGER PRIMARY KEY)")
            self._pictures.executemany("INSERT OR IGNORE INTO used VALUES (?)", ((content,) for content in contents))
            self._pictures.execute("DELETE FROM thumbnails WHERE content NOT IN (SELECT content FROM used)")
        self.close()
        self.pending_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files."""
        self._pictures.close()
        self._pending.close()


def _created(path: Path, table: str) -> sqlite3.Connection:
    with errors_of(path):
        file = sqlite3.connect(path)
        file.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        file.commit()
    return file


def write_items(path: Path, rows: Iterable[Sequence], captions: Iterable[str], categories: Iterable[str]) -> None:
    """`items.sqlite`: rows of (image_key, product_id, category, subcategory, number of its caption or None, content)."""
    with errors_of(path), contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute(
            "CREATE TABLE items (row INTEGER PRIMARY KEY, image_key TEXT UNIQUE NOT NULL, product_id TEXT NOT NULL,"
            " category TEXT NOT NULL, subcategory TEXT NOT NULL, caption INTEGER, content INTEGER NOT NULL)"
        )
        file.execute("CREATE TABLE captions (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        file.execute("CREATE TABLE categories (number INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        file.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", ((n, *row) for n, row in enumerate(rows)))
        file.executemany("INSERT INTO captions VALUES (?, ?)", enumerate(captions))
        file.executemany("INSERT INTO categories VALUES (?, ?)", enumerate(categories))

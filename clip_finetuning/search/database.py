"""SQLite files of an index, opened as data: read-only, with no code of the file's own to run."""

import sqlite3
from pathlib import Path
from urllib.parse import quote


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that reads a finished file, from any thread. Raises ValueError if there is no database."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; make the index again with search_clip.py index")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")  # a view or trigger of somebody's file calls nothing
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be read ({error}); make the index again with search_clip.py index") from None
    return connection

"""The files of a folder by every way to write their names."""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator

from clip_finetuning.catalogue.picture_names import ENDING
from clip_finetuning.catalogue.rows import RowError

KEPT = 4  # files of one key that are kept: more of them are ambiguous anyway
ALIKE = 0.5  # of a name's letters, for the nearest one to be worth naming
COMPARED = 20_000  # names that are compared for it
ENDED = re.compile(rf"(.+)({ENDING.pattern})", re.DOTALL | re.IGNORECASE)
OTHER_KIND = re.compile(r".+\.[a-z][a-z0-9]{0,9}", re.DOTALL | re.IGNORECASE)  # what ends so is no picture
SPELLED, NO_ENDING, OTHER_ENDING = "under another spelling", "without the ending", "under another ending"
DEEPER = "in a subfolder"


class AmbiguousName(RowError):
    """Two files fit a name equally well; `files` are some of them."""

    def __init__(self, files: list[str]) -> None:
        super().__init__("ambiguous image name")
        self.files = files


class PictureIndex:
    """The pictures below a folder, listed when first asked for. Links to other folders are not followed."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder
        self.unreadable: list[str] = []  # folders that could not be listed, and why
        self._files: dict[str, list[str]] | None = None  # key -> paths in the folder

    def fit(self, path: str, below: bool = True) -> tuple[str, str] | None:
        """(path of the one file that fits a path in the folder best, how), or None. `below`: in any subfolder too.

        Raises AmbiguousName for two that fit equally.
        """
        stem, ending = split_ending(folded(path))
        levels = [("/" + stem, SPELLED), *([(stem, DEEPER)] if below else [])]
        for key, how in levels:
            files = [file for file in self._listed(key) if not ending or split_ending(folded(file))[1] == ending]
            if files:
                return _only(files), how if ending or how == DEEPER else NO_ENDING
        for key, _ in levels:
            if files := self._listed(key):
                return _only(files), OTHER_ENDING
        return None

    def nearest(self, path: str) -> str | None:
        """The file whose name looks most like that of a path, or None."""
        wanted = folded(path).rpartition("/")[2]
        self._listed("")
        names = {key.rpartition("/")[2]: files[0] for key, files in (self._files or {}).items() if key[0] == "/"}
        alike = (name for length in range(3, -1, -1) for name in names if name[:length] == wanted[:length])
        some = list(dict.fromkeys(name for name, _ in zip(alike, range(COMPARED))))
        best = difflib.get_close_matches(split_ending(wanted)[0], some, n=1, cutoff=ALIKE)
        return names[best[0]] if best else None

    def _listed(self, key: str) -> list[str]:
        if self._files is None:
            self._files = {}
            for path in _pictures(os.fspath(self.folder), "", self.unreadable):
                stem = split_ending(folded(path))[0]
                # A file fits its whole path, "/a/b/1", and as one in a subfolder "b/1" and "1".
                tails = [stem[place + 1 :] for place, letter in enumerate(stem) if letter == "/"]
                for name in ["/" + stem, *tails]:
                    files = self._files.setdefault(name, [])
                    if len(files) < KEPT:
                        files.append(path)
        return self._files.get(key, [])


def folded(path: str) -> str:
    """Equal for names that differ only by case and by how Unicode composes a letter."""
    return (
        path.lower() if path.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    )


def split_ending(path: str) -> tuple[str, str]:
    """(path, ending) of a picture's path; the ending is blank where none of the known ones is there."""
    match = ENDED.fullmatch(path)
    return (match[1], match[2]) if match else (path, "")


def _pictures(folder: str, beginning: str, unreadable: list[str]) -> Iterator[str]:
    """Paths in a folder of all that may be pictures, sorted; hidden files and folders are none (`__MACOSX/._1.jpg`).

    Folders that cannot be listed are added to `unreadable`.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        unreadable.append(f"{folder}: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _pictures(entry.path, f"{beginning}{entry.name}/", unreadable)
        elif split_ending(entry.name)[1] or not OTHER_KIND.fullmatch(entry.name):
            yield beginning + entry.name


def _only(files: list[str]) -> str:
    if len(files) > 1:
        raise AmbiguousName(files)
    return files[0]

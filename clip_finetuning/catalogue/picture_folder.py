"""Finds the pictures that a cell names in their folder, however the names are written there."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from clip_finetuning.catalogue.picture_index import SPELLED, AmbiguousName, PictureIndex, folded
from clip_finetuning.catalogue.picture_names import is_url, names_of, pieces
from clip_finetuning.catalogue.rows import RowError, picture_in_folder
from clip_finetuning.pictures.decode import lies_in

Found = tuple[str, str]  # path and file name
MISSING = "missing image"
WHOLE_NUMBER = re.compile(r"\d+\.0")  # how pandas writes an id once one of its column is missing


class PictureFolder:
    """The folder of the pictures, and what had to be guessed to find them there.

    A name is taken as it is where that is a file. Else it fits the one file with the same letters, whatever their case,
    Unicode form, slashes and ending; in a subfolder; or below a folder too many that the name begins with. `of_url` gives
    the file of a URL, or raises RowError.
    """

    def __init__(
        self, folder: str | os.PathLike, allow_outside: bool = False, of_url: Callable[[str], Found] | None = None
    ) -> None:
        self.folder, self.allow_outside, self.of_url = folder, allow_outside, of_url
        self._index = PictureIndex(folder)
        self._folders: dict[str, bool] = {}  # whether they lie in the folder, links followed
        self._own_name = folded(os.path.basename(os.path.realpath(folder)))
        self._left_out: str | None = None  # the folder of another machine that names begin with
        self._guessed: Counter[str] = Counter()  # how -> pictures
        self._examples: dict[str, str] = {}  # how -> the first of them
        self._missing: str | None = None  # the first name that is not there
        self._ambiguous: tuple[str, list[str]] | None = None  # the first of two files, and these

    def find_all(self, cell: object) -> list[Found | RowError]:
        """The pictures that a cell names, each once, or why one of them cannot be used; nothing for a blank cell."""
        pictures = [picture for name in names_of(cell) for picture in self._find_pieces(name)]
        return list(dict.fromkeys(pictures))

    def remarks(self) -> list[str]:
        """What was guessed, and one name of those that were not found, a line each."""
        lines = [f"{count:,} pictures are there {how} ({self._examples[how]})" for how, count in self._guessed.items()]
        if self._ambiguous:
            name, files = self._ambiguous
            lines.append(f"{name} may be {' or '.join(files[:2])}: write the one that is meant exactly as it is there")
        if self._missing is not None:
            nearest = self._index.nearest(self._missing)
            lines.append(
                f"no file {Path(self.folder, self._missing).as_posix()}; "
                + (f"the nearest name there is {nearest}" if nearest else "no name there is like it")
            )
        if unreadable := self._index.unreadable:
            lines.append(f"{len(unreadable):,} folders of pictures cannot be listed ({unreadable[0]})")
        return lines

    def _find_pieces(self, name: str) -> list[Found | RowError]:
        """The picture of a name, or those of its pieces where the whole is none."""
        parts = pieces(name)
        if parts == [name]:
            return [self._find(name)]
        # As long as the name may be several, no beginning of it is left out: `a/1.jpg,a/2.jpg` is not `2.jpg`.
        whole = None if is_url(name) else self._find(name, may_be_several=True)
        if isinstance(whole, tuple):
            return [whole]
        found = [picture for part in parts for picture in self._find_pieces(part)]
        if found and (whole is None or any(isinstance(picture, tuple) for picture in found)):
            return found
        whole = self._find(name)
        return [whole] if isinstance(whole, tuple) or not found else found

    def _find(self, name: str, may_be_several: bool = False) -> Found | RowError:
        """The picture of a name, or why there is none."""
        try:
            if is_url(name):
                if self.of_url is None:
                    raise RowError("image is a URL (--download DIR fetches it)")
                return self.of_url(name)
            if there := self._plain(name):
                return there
            guess = self._guess(name, may_be_several)
            if guess is None:
                raise RowError(MISSING)
            path, how = guess
            found = self._plain(path) or picture_in_folder(self.folder, path, self.allow_outside)
        except RowError as error:
            if isinstance(error, AmbiguousName):
                self._ambiguous = self._ambiguous or (name, error.files)
            elif str(error) == MISSING and not may_be_several and self._missing is None:
                self._missing = name
            return error
        self._guessed[how] += 1
        self._examples.setdefault(how, f"{name} -> {path}")
        return found

    def _plain(self, name: str) -> Found | None:
        """The file that a name says as it is, if it is there. Raises RowError if it is refused: nothing else is meant.

        One look at the disk for most: where folders really are is looked up once for each.
        """
        path = os.path.join(self.folder, name)
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            return None
        if stat.S_ISREG(mode) and (self.allow_outside or self._inside(os.path.dirname(path))):
            return Path(path).as_posix(), os.path.basename(path)
        return None if stat.S_ISDIR(mode) else picture_in_folder(self.folder, name, self.allow_outside)

    def _inside(self, folder: str) -> bool:
        if folder not in self._folders:
            self._folders[folder] = lies_in(self.folder, folder) or os.path.samefile(self.folder, folder)
        return self._folders[folder]

    def _guess(self, name: str, may_be_several: bool) -> tuple[str, str] | None:
        """(path in the folder, how it was found), or None. Raises AmbiguousName."""
        path = _slashed(name)
        unmarked = re.split(r"\?\w", path)[0]  # ?v=123
        spellings = dict.fromkeys([path, unmarked, _slashed(unquote(unmarked))])
        if WHOLE_NUMBER.fullmatch(path):
            spellings[path[:-2]] = None
        for spelling in spellings:
            if found := spelling and self._index.fit(spelling):
                return found
        return None if may_be_several else self._below_a_folder_too_many(list(spellings)[-1].split("/"))

    def _below_a_folder_too_many(self, parts: list[str]) -> tuple[str, str] | None:
        """Without what stands before the folder's own name; else without the one beginning that others have as well."""
        own = max((place for place, part in enumerate(parts[:-1], 1) if folded(part) == self._own_name), default=0)
        if own and (found := self._index.fit("/".join(parts[own:]))):
            return found[0], "without the folder before it" if found[1] == SPELLED else found[1]
        for place in range(1, len(parts)):
            beginning = "/".join(parts[:place])
            if self._left_out in (None, beginning):
                found = self._index.fit("/".join(parts[place:]), below=False)
                if found:
                    self._left_out = beginning
                    return found[0], f"without {beginning}/ before it"
        return None


def _slashed(name: str) -> str:
    """A path with plain slashes, without drive, root and dots."""
    path = re.sub(r"^(?:file:/*)?[A-Za-z]:(?=/)", "", name.replace("\\", "/"))
    parts = [part.strip() for part in path.split("/")]
    return "/".join(part for part in parts if part not in ("", "."))

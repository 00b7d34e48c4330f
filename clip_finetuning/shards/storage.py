"""The folder that shards are written to: a local one, or any URL that fsspec knows (`s3://bucket/shards`).

Either way a file appears whole or not at all under its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

from clip_finetuning.runtime.atomic_write import TEMPORARY, atomic_write, remove_leftovers, temporary_name
from clip_finetuning.runtime.remote import RemoteFile, file_system, patiently
from clip_finetuning.runtime.resuming import ResumingStream

# A remote file has no lock that tells whether somebody is still sending it.
ABANDONED = timedelta(days=1)
MAKES_BUCKETS = {"s3", "gs"}  # they have no folders, and would make a bucket of a misspelt name


def open_folder(path: str | os.PathLike) -> LocalFolder | RemoteFolder:
    """The folder of a path or URL. Raises ValueError if the URL needs a package or is not known."""
    path = str(path)
    if path.startswith("file://"):
        return LocalFolder(url2pathname(urlparse(path).path))
    return RemoteFolder(path) if "://" in path else LocalFolder(path)


class LocalFolder:
    """A folder of this machine. Temporaries are hidden files that end in `.partial`."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def write(self, name: str) -> AbstractContextManager[Path]:
        """A context with a temporary path, which becomes the file if no error is raised."""
        return atomic_write(self.path / name)

    def read_text(self, name: str) -> str | None:
        """The text of a file, or None if there is none."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is none."""
        try:
            return os.stat(self.path / name).st_size
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def clean(self, names: Collection[str]) -> None:
        """Delete the temporaries that killed runs left of these files."""
        for folder in {os.path.dirname(name) for name in names}:
            remove_leftovers(
                self.path / folder, {os.path.basename(name) for name in names if os.path.dirname(name) == folder}
            )


class RemoteFolder:
    """A folder behind a URL. A file is made on this machine, sent under a hidden name and renamed there."""

    def __init__(self, url: str):
        self.files, self.path = file_system(url)
        self.url = url

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """A context with a temporary path, which becomes the file if no error is raised."""
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "file")
            yield temporary
            try:
                patiently(self.url, partial(self._send, temporary, self._at(name)))
            except OSError as error:
                raise OSError(f"cannot write {name} to {self.url}: {error}") from error

    def _send(self, temporary: Path, path: str) -> None:
        folder, _, file = path.rpartition("/")
        sent = f"{folder}/{temporary_name(file)}"
        try:
            if not MAKES_BUCKETS & set(_protocols(self.files)):
                self.files.makedirs(folder, exist_ok=True)
            self.files.put_file(str(temporary), sent)
            self.files.mv(sent, path)
        except BaseException:
            with suppress(Exception):
                self.files.rm_file(sent)
            raise

    def read_text(self, name: str) -> str | None:
        """The text of a file, or None if there is none."""
        try:
            return patiently(self.url, partial(self.files.cat_file, self._at(name))).decode("utf-8")
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, ResumingStream(RemoteFile(f"{self.url.rstrip('/')}/{name}")))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is none."""
        self.files.invalidate_cache()
        try:
            return patiently(self.url, partial(self.files.size, self._at(name)))
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            with suppress(FileNotFoundError):  # a removal that went well though its answer was lost
                patiently(self.url, partial(self.files.rm_file, self._at(name)))

    def names(self) -> list[str]:
        self.files.invalidate_cache()
        try:
            listed = patiently(self.url, partial(self.files.ls, self.path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in listed)

    def clean(self, names: Collection[str]) -> None:
        """Delete what killed runs left of these files a day ago or earlier; a younger one may be on its way right now."""
        self.files.invalidate_cache()
        for name in {os.path.dirname(name) for name in names}:
            with suppress(Exception):  # no such folder, or a protocol that does not tell the time of a file
                for path in self.files.ls(self._at(name).rstrip("/"), detail=False):
                    temporary = TEMPORARY.fullmatch(path.rpartition("/")[2])
                    if temporary and os.path.join(name, temporary["name"]) in names and self._is_abandoned(path):
                        self.files.rm_file(path)

    def _is_abandoned(self, path: str) -> bool:
        modified = self.files.modified(path)
        zone = modified.tzinfo or timezone.utc
        return datetime.now(zone) - modified.replace(tzinfo=zone) > ABANDONED


def _protocols(files: Any) -> Sequence[str]:
    return [files.protocol] if isinstance(files.protocol, str) else files.protocol

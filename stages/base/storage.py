"""Files in object storage, each under the sha256 of its content, and a bounded cache of those that are in use.

fsspec, which DVC brings, reaches them: S3 with s3fs, other clouds with a package of theirs, a folder with none.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.files import sha256
from stages.base.text import shown_url

GIGABYTES = "REPRONET_CACHE_GB"  # in the environment: what the cache takes of the disk at most
USUAL = "20"
WAITS = (1.0, 5.0, None)  # seconds before another try; the libraries below try for a while themselves
FORGOTTEN_SECONDS = 86_400.0  # after which what a killed process has left half fetched is removed


def check_place(name: str, folder: str) -> None:
    """Raise InputError unless the parameter `name` is a folder in storage, or on a disk by its whole path."""
    accepted = "accepted: a URL such as s3://bucket/folder, or the whole path of a folder"
    if "://" not in folder and not Path(folder).is_absolute():
        raise InputError(f"{name}: {folder!r}; {accepted}")
    if "@" in urlsplit(folder).netloc:
        raise InputError(f"{name}: {shown_url(folder)!r} holds a key, which belongs into the environment; {accepted}")
    _system(folder)


def is_stored(place: str) -> bool:
    """Return whether this names a file in storage, and not one beside the table that has its name."""
    return "://" in place or Path(place).is_absolute()


def store(file: Path, folder: str, digest: str) -> str:
    """Copy a file into storage, unless it is there; return its place. Raises InputError if that fails."""
    place = f"{folder.rstrip('/')}/{digest}{file.suffix}"
    system, path = _system(place)

    def put() -> None:
        with suppress(FileNotFoundError):
            if system.size(path) == file.stat().st_size:
                return
        if "file" in system.protocol:
            system.makedirs(system._parent(path), exist_ok=True)
        system.put_file(str(file), path)

    _tried(put, f"{shown_url(place)} cannot be written")
    return place


@dataclass(frozen=True)
class Cache:
    """Files of storage that are in use, for all processes of this machine; the least recently used make room."""

    folder: Path
    limit: int  # bytes

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Cache":
        """Return the one beside other things that outlive a process. Raises InputError for a limit that is none."""
        given = environment.get(GIGABYTES) or USUAL
        try:
            limit = float(given) * 1e9
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise InputError(f"{GIGABYTES}: {given!r}, should be a number above 0, of gigabytes")
        return cls(home(environment) / "shards", int(limit))

    def fetched(self, place: str, digest: str, n_bytes: int) -> Path:
        """Return the file of this place, about `n_bytes` long, which another process may remove as soon as it is here.

        Raises InputError if it cannot be fetched, or has not the content of this sha256.
        """
        from filelock import FileLock

        file, partial = self.folder / f"{digest}.npy", self.folder / f".{digest}.partial"
        with suppress(FileNotFoundError):
            os.utime(file)  # it is in use
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{digest[:2]}.lock"):  # a fixed number of them, which nobody has to remove
            if file.exists():
                return file
            system, path = _system(place)

            def get() -> None:
                self._make_room(n_bytes)
                system.get_file(path, str(partial))
                if (found := sha256(partial)) != digest:
                    raise ValueError(f"its sha256 is {found}, should be {digest}")

            try:
                _tried(get, f"{shown_url(place)} cannot be fetched", "; dvc repro -f prepare puts it there again")
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
        return file

    def _make_room(self, n_bytes: int) -> None:
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        used = sum(size for _, size, _ in found) + n_bytes
        for written, size, path in sorted(found):
            is_left = path.suffix == ".partial" and time.time() - written > FORGOTTEN_SECONDS
            if is_left or (used > self.limit and path.suffix == ".npy"):
                path.unlink(missing_ok=True)
                used -= size


def _system(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a place, and its path there."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InputError(f"{shown_url(place)}: {error}; for S3: pip install -c constraints.txt -e '.[s3]'") from error
    return system, path


def _tried(function: Callable[[], None], message: str, remedy: str = "") -> None:
    """Call a function, again if it fails, but not for what is not there or not allowed."""
    for seconds in WAITS:
        try:
            return function()
        except Exception as error:  # of any library
            if seconds is None or isinstance(error, FileNotFoundError | PermissionError):
                raise InputError(f"{message}: {type(error).__name__}: {shown_url(str(error))}{remedy}") from error
            time.sleep(seconds)
    return None

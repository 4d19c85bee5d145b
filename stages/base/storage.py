"""Files in object storage, each under the sha256 of its content, and a bounded cache of those that are in use.

fsspec, which DVC brings, reaches them: S3 with s3fs, other clouds with a package of theirs, a folder with none.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.files import copy_synced, sha256, sync
from stages.base.text import shown_url

GIGABYTES = "REPRONET_CACHE_GB"  # in the environment: what the cache takes of the disk at most
USUAL = "20"
PLACE = re.compile(r"(?!.*::)((file://)?/|(?!file:|local:)[\w+.-]+://[^/?#])[^?#]*")  # :: ? # mean more to fsspec
WAITS = (1.0, 5.0, None)  # seconds before another try; the libraries below try for a while themselves
# How long a file may take, with all tries: so many seconds, and one for so many of its bytes.
SECONDS, BYTES_A_SECOND = 120.0, 500_000
FORGOTTEN_SECONDS = 3_600.0  # after which what a killed process has left half fetched is removed
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # which no other try changes


def check_place(name: str, folder: str) -> None:
    """Raise InputError unless the parameter `name` is a folder in storage, or on a disk by its whole path."""
    accepted = "accepted: a URL such as s3://bucket/folder, or the whole path of a folder; without ::, ? and #"
    _, is_url, rest = folder.partition("://")
    shown = shown_url(folder) if is_url else re.sub(".*@", "***@", folder)
    if is_url and (shown != folder or "@" in rest.partition("/")[0]):
        raise InputError(f"{name}: {shown!r} holds a key, which belongs into the environment; {accepted}")
    if not PLACE.fullmatch(folder):
        raise InputError(f"{name}: {shown!r}; {accepted}")


def check_writable(folder: str) -> None:
    """Raise InputError unless the storage takes a file, which is removed again where that is allowed."""
    with TemporaryDirectory() as own:
        file = Path(own) / "new.npy"
        file.write_text(uuid4().hex)
        system, path = _system(store(file, folder, sha256(file)))
    with suppress(Exception):  # of any library
        system.rm_file(path, **_limit(system, SECONDS))


def is_stored(place: str) -> bool:
    """Return whether this names a file in storage, and not one beside the table that has its name."""
    return "://" in place or Path(place).is_absolute()


def on_disk(place: str) -> Path | None:
    """Return the path of a place that is on a disk of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    system, path = _system(place)
    return Path(path) if isinstance(system, LocalFileSystem) else None


def store(file: Path, folder: str, digest: str) -> str:
    """Copy a file into storage, unless it is there; return its place. Raises InputError if that fails."""
    place = f"{folder.rstrip('/')}/{digest}{file.suffix}"
    system, path = _system(place)
    target = on_disk(place)

    def put(limit: Mapping[str, float]) -> None:
        if target:
            if not target.exists() or sha256(target) != digest:
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_synced(file, target)
            return
        with suppress(FileNotFoundError, PermissionError):  # the latter is S3's answer where one may not list
            # That of S3 is the md5 of what came as a whole. Without one, it is sent again: to read it would cost more.
            known = str(system.info(path, **limit).get("ETag")).strip('"')
            if known == hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest():
                return
        if not system.async_impl:  # those of clouds are, have no folders, and would make a bucket
            system.makedirs(system._parent(path), exist_ok=True)
        system.put_file(str(file), path, **limit)

    _tried(put, system, _deadline(file.stat().st_size), f"{shown_url(place)} cannot be written")
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

    def file(self, place: str, digest: str) -> Path:
        """Return where the file of this place is, once it has been fetched."""
        return self.folder / f"{digest}{Path(place).suffix}"

    def fetched(self, place: str, digest: str, n_bytes: int) -> Path:
        """Return the file of this place, about `n_bytes` long, which another process may remove as soon as it is here.

        Raises InputError if it cannot be fetched in time, or has not the content of this sha256.
        """
        from filelock import FileLock

        file, deadline = self.file(place, digest), _deadline(n_bytes)
        if file.exists():
            with suppress(OSError):  # it may be another user's, or have gone
                os.utime(file)  # it is in use
            return file
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Threads hold it, too. There is a fixed number of these files, which nobody has to remove.
            with FileLock(self.folder / f".{digest[:2]}.lock", timeout=deadline - time.monotonic()):
                if not file.exists():
                    self._fetch(place, digest, n_bytes, deadline)
        except OSError as error:
            raise InputError(f"{shown_url(place)} cannot be fetched: {error}{self._remedy}") from error
        return file

    @property
    def _remedy(self) -> str:
        return f"; {self.folder} is where it goes, and may take {self.limit / 1e9:g} GB, as {GIGABYTES} says"

    def _fetch(self, place: str, digest: str, n_bytes: int, deadline: float) -> None:
        partial, (system, path) = self.folder / f".{digest}.partial", _system(place)

        def get(limit: Mapping[str, float]) -> None:
            self.folder.mkdir(exist_ok=True)  # it may have been removed, which would look as if the file were missing
            self._make_room(n_bytes)
            system.get_file(path, str(partial), **limit)
            if (found := sha256(partial)) != digest:
                raise ValueError(f"its sha256 is {found}, should be {digest}")

        what, remedy = f"{shown_url(place)} cannot be fetched", "; dvc repro -f prepare puts it there again"
        try:
            _tried(get, system, deadline, what, remedy, self._remedy)
            sync(partial)
            partial.replace(self.file(place, digest))
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, n_bytes: int) -> None:
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        used, free = sum(size for _, size, _ in found), shutil.disk_usage(self.folder).free
        missing = n_bytes - min(self.limit - used, free)
        for written, size, path in sorted(found):
            is_left = path.suffix == ".partial" and time.time() - written > FORGOTTEN_SECONDS
            if is_left or (missing > 0 and not path.name.startswith(".")):
                path.unlink(missing_ok=True)
                missing -= size


def _system(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a place, and its path there."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
    except Exception as error:  # of any library
        said = shown_url(str(error))
        raise InputError(f"{shown_url(place)}: {said}; for S3: pip install -c constraints.txt -e '.[s3]'") from error
    return system, path


def _deadline(n_bytes: int) -> float:
    return time.monotonic() + SECONDS + n_bytes / BYTES_A_SECOND


def _limit(system: Any, seconds: float) -> dict[str, float]:
    """Return the option that has a system's methods end in time, if they have one."""
    return {"timeout": seconds} if system.async_impl else {}


def _tried(
    function: Callable[[Mapping[str, float]], None],
    system: Any,
    deadline: float,
    message: str,
    remedy: str = "",
    remedy_if_full: str = "",
) -> None:
    """Call a function with a `_limit`, again if it fails.

    But not for what is not there, not allowed or full, nor after the deadline.
    """
    for wait in WAITS:
        left = max(1.0, deadline - time.monotonic())
        try:
            return function(_limit(system, left))
        except Exception as error:  # of any library
            is_full = isinstance(error, OSError) and error.errno in FULL
            is_last = wait is None or time.monotonic() + wait > deadline
            if is_full or is_last or isinstance(error, FileNotFoundError | PermissionError):
                said = shown_url(str(error)) or "no answer in time"
                end = remedy_if_full if is_full else remedy
                raise InputError(f"{message}: {type(error).__name__}: {said}{end}") from error
            time.sleep(wait or 0.0)
    return None

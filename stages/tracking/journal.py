"""What happened in a run, written on this disk first: MLflow follows it, at once or later.

A journal is a folder: events.jsonl, numbered events one a line, and the files that these name, by their digests. It
goes when MLflow has all of it. Nothing in it is run, and no address with a password is in it.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

from stages.base.errors import InputError, listed
from stages.base.experiment import home
from stages.base.files import reserve, sha256
from stages.base.text import warn

VERSION = 1  # of all that a journal holds; of a later one it is said that later code is needed
EVENTS, FILES, DAMAGED, DONE = "events.jsonl", "files", ".damaged", ".done"
FORGOTTEN_SECONDS = 3600.0  # after which one without an event, of a process that was killed at its start, is removed
ROOM = 1 << 18  # bytes of the disk that it has from its start: the events of 700 epochs
SYNC_SECONDS = 1.0  # between two times that it is made to outlast a power cut, as checkpoints are

Event = dict[str, Any]


class DamagedError(InputError):
    """A journal is not as it was written."""


class Journal:
    """A journal that this process writes. Its methods raise OSError if the disk has no place for it."""

    def __init__(self, environment: Mapping[str, str], **about: Any) -> None:
        """Begin a new one; `about` is what its first event says.

        Where the project's own place cannot be written to, it is a temporary one, and goes in any case.
        """
        name = uuid4().hex
        try:
            self.folder, self._is_kept = folder_of(environment) / name, True
            self._open()
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder, self._is_kept = Path(mkdtemp()) / name, False
            self._open()
        self._n, self._synced = 0, 0.0
        self.write("journal", version=VERSION, **about)

    def _open(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700)
        (self.folder / FILES).mkdir()
        path = self.folder / EVENTS
        reserve(path, ROOM)
        self._file = path.open("r+b", buffering=0)
        # Of this kind, since processes that are forked do not get it, and those that were killed have it no more.
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def write(self, kind: str, **content: Any) -> None:
        """Write an event, with the time, in ms since 1970."""
        event = {"n": self._n + 1, "time": now(), "kind": kind} | content
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / EVENTS))
        self._n += 1  # what comes between may be Ctrl-C: then two have one number
        if time.monotonic() - self._synced > SYNC_SECONDS or kind != "points":
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def keep(self, name: str, content: "Path | bytes", is_fixed: bool = False) -> dict[str, str]:
        """Keep a file under this name; return its digest by the name, for the event that is about it.

        One that `is_fixed` is only ever replaced, so that it need not be copied.
        """
        path = self.folder / FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _copy(content, path, is_fixed)
        if not is_fixed:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # before the event that names it
        return {name: sha256(path)}

    def discard(self) -> None:
        """Remove it: it could not be written."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """End writing. One in a temporary place is removed."""
        self._file.close()
        if not self._is_kept:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


class Events:
    """The events of a journal, read as they come."""

    def __init__(self, folder: Path) -> None:
        self._path, self._offset, self._n = folder / EVENTS, 0, 0
        self.is_damaged = False  # whether more follows, but not what should

    def read(self) -> list[Event]:
        """Return the events that were written since the last time; what is cut or damaged ends it.

        Raises InputError for a journal of later code, and OSError if there is none.
        """
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offset)
            data = file.readall() or b""
        found = []
        *lines, _ = data.split(b"\n")
        for line in lines:
            event = _event(line)
            if event.get("n") not in (self._n, self._n + 1) or not event.keys() >= {"time", "kind"}:
                self.is_damaged = True
                break
            if event.get("version", VERSION) > VERSION:
                raise InputError(
                    f"{self._path} is of version {event['version']}; this code reads up to {VERSION}: take later code"
                )
            self._n, self._offset = event["n"], self._offset + len(line) + 1
            found.append(event)
        return found


def folder_of(environment: Mapping[str, str]) -> Path:
    """Return the folder of all journals."""
    return home(environment) / "journals"


def journals(environment: Mapping[str, str]) -> Iterator[tuple[Path, list[Event]]]:
    """Yield the journals that MLflow has not got the whole of, with what they hold by now, the oldest first."""
    found = []
    folders = folder_of(environment)
    for folder in folders.iterdir() if folders.is_dir() else ():
        with suppress(OSError):  # another process removes it
            try:
                events = Events(folder).read() if not folder.suffix else []
            except InputError as error:  # of later code
                warn(f"warning: {error}")
                continue
            if events:
                found.append((events[0]["time"], folder, events))
            elif folder.suffix == DONE or (not folder.suffix and is_forgotten(folder)):
                shutil.rmtree(folder, ignore_errors=True)
    for _, folder, events in sorted(found, key=lambda each: (each[0], each[1])):
        yield folder, events


def remove(folder: Path) -> None:
    """Remove a journal that has arrived, in one step, so that no half of one is left."""
    done = folder.rename(folder.with_suffix(DONE))
    shutil.rmtree(done, ignore_errors=True)


def is_written(folder: Path) -> bool:
    """Return whether its process may write more."""
    try:
        with (folder / EVENTS).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which others that ask have at the same time
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def is_forgotten(folder: Path) -> bool:
    """Return whether a process was killed before it could write anything."""
    return not is_written(folder) and time.time() - folder.stat().st_mtime > FORGOTTEN_SECONDS


def has_end(events: list[Event]) -> bool:
    """Return whether nothing more is to come."""
    return bool(events) and events[-1]["kind"] in ("end", "evaluation")


def files_of(folder: Path, digests: Mapping[str, str]) -> dict[str, Path]:
    """Return the files of an event by their names. Raises DamagedError if one is not as it was."""
    paths = {name: folder / FILES / name for name in digests}
    inside = (folder / FILES).resolve()
    other = [
        name
        for name, path in paths.items()
        if not (path.is_file() and path.resolve().is_relative_to(inside) and sha256(path) == digests[name])
    ]
    if other:
        raise DamagedError(f"the journal {folder} is damaged: {listed(other)}")
    return paths


def now() -> int:
    """Return the time as MLflow takes it: ms since 1970."""
    return int(time.time() * 1000)


def _event(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:  # zeros, or what a power cut has left
        return {}
    return event if isinstance(event, dict) else {}


def _copy(source: Path, target: Path, is_fixed: bool) -> None:
    if is_fixed:
        with suppress(OSError):  # another disk, or one that knows no links
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)

"""Whether anybody is at work in this repository, and the locks by which nobody begins while things are removed."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.text import one_line

WAIT_SECONDS = 60.0  # for a tidy that removes
TOOLS = ("tools.rebuild", "tools.sweep", "tools.sync", "tools.tidy")  # that write what tidy looks at


@contextmanager
def entering() -> Iterator[None]:
    """Hold what a tool takes to begin, and tidy has while it is at work: until the tool has locks of its own.

    Raises InputError if tidy does not end soon.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # another user's, or read-only: a tidy finds what has begun by the locks of that
            stack.enter_context(_held())
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Let no command of DVC, no sweep and no rebuild begin meanwhile. Raises InputError if one is at work."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    with ExitStack() as stack:
        try:
            stack.enter_context(_held())
            stack.enter_context(stack.enter_context(Repo()).lock)
        except LockError as error:
            raise InputError("DVC is at work in this repository. Let it end, and run this again.") from error
        except OSError as error:
            raise InputError(f"the lock that others wait for cannot be had: {error}") from error
        except DvcException as error:
            raise InputError(f"DVC cannot be used: {error}") from error
        check_idle()
        yield


def check_idle() -> None:
    """Raise InputError, which says who it is, if a stage, a sweep, DVC or another tool that writes is at work here."""
    if who := next(chain(_locks(), _sweeps(), _processes()), ""):
        raise InputError(f"{one_line(who)} is at work in this repository. Let it end, or end it, and run this again.")


def is_at_work(command: Sequence[str]) -> bool:
    """Return whether a command may write here: dvc, python -m dvc, a stage, or a tool that does."""
    names = [Path(word).name for word in command[:2]]
    if "dvc" in names[:1] or (names[0:1] and names[0].startswith("python") and "dvc" in names[1:]):
        return True
    module = next((command[i + 1] for i, word in enumerate(command[:-1]) if word == "-m"), "")
    return module.split(".")[0] in ("dvc", "stages") or module in TOOLS


@contextmanager
def _held() -> Iterator[None]:
    """Hold the lock of tidy. Raises InputError if it is not free soon, and OSError if it cannot be had."""
    place = home(os.environ)
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(place / "tidy.lock", timeout=WAIT_SECONDS))
        except Timeout as error:
            raise InputError(
                "python -m tools.tidy is at work in this repository. Run this again when it has ended."
            ) from error
        yield


def _locks() -> Iterator[str]:
    """Yield who writes an output, a checkpoint or a rebuild now, as it says in its lock: see stages/base/locks.py."""
    for lock in (home(os.environ) / "locks").glob("*.lock"):
        try:
            with lock.open("rb") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    yield file.read(1000).decode(errors="replace") or "another process"
        except FileNotFoundError:  # its owner has just removed it
            continue
        except PermissionError:
            yield f"another user's process (of one that was killed {lock} stays: then remove it)"


def _sweeps() -> Iterator[str]:
    from tools.sweep.plan import FOLDER  # with torch, which those who only enter do without

    for lock in FOLDER.glob("*/lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except (Timeout, PermissionError):
            yield f"the sweep {lock.parent.name}"


def _processes() -> Iterator[str]:
    """Yield the commands of other processes of this user that are at work in this folder, or below it."""
    root = Path.cwd().resolve()
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            command = process.cmdline()
            if process.pid not in own and is_at_work(command) and Path(process.cwd()).is_relative_to(root):
                yield f"process {process.pid} ({' '.join(command):.200})"

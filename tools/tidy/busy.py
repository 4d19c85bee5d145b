"""Whether anybody is at work in this repository: what is being written now, nothing needs yet."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.text import one_line
from tools.sweep.plan import FOLDER

# dvc, python -m dvc, python -m tools.sweep, and so on.
AT_WORK = re.compile(
    r"(\S*/)?(python[\d.]* (-\S+ )*?)?((\S*/)?dvc|-m (dvc|stages(\.\S+)?|tools\.(rebuild|sweep|sync|tidy)))( .*)?",
    re.DOTALL,
)


def check_idle() -> None:
    """Raise InputError, which says who it is, if a stage, a sweep, DVC or another tool that writes is at work here."""
    if who := next(chain(_processes(), _locks(), _sweeps()), ""):
        raise InputError(f"{one_line(who)} is at work in this repository. Let it end, or end it, and run this again.")


def _processes() -> Iterator[str]:
    """Yield the commands of other processes that are at work in this folder, or below it."""
    root = Path.cwd().resolve()
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            command = " ".join(process.cmdline())
            if AT_WORK.fullmatch(command) and process.pid not in own and Path(process.cwd()).is_relative_to(root):
                yield f"process {process.pid} ({command:.200})"


def _locks() -> Iterator[str]:
    """Yield who writes an output now, as it says in the output's lock: see stages/base/locks.py."""
    for lock in (home(os.environ) / "locks").glob("*.lock"):
        with suppress(OSError), lock.open("rb") as file:  # its owner has just removed it
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                yield file.read(1000).decode(errors="replace") or "another process"


def _sweeps() -> Iterator[str]:
    for lock in FOLDER.glob("*/lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            yield f"the sweep {lock.parent.name}"

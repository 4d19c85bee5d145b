"""Locks on outputs: two processes that write one would mix their results."""

import fcntl
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from stages.base.dvc import check_dvc
from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.text import printable, warn

WAIT_SECONDS = 20.0  # what a process that is ending has to close its run
_held: dict[Path, tuple[Path, int]] = {}  # by output: the file that locks it, and its descriptor


@contextmanager
def locked(*outputs: Path) -> Iterator[None]:
    """Let no other process write these meanwhile. What this process has locked already stays so.

    Raises InputError, which says who it is, if another process holds one. It is waited for, but not for long: a stage
    whose DVC has ended is about to end, too.
    """
    with ExitStack() as stack:
        for output in sorted(map(_absolute, outputs)):
            if output not in _held:
                stack.enter_context(_hold(output))
        yield


@contextmanager
def locked_if_free(output: Path) -> Iterator[bool]:
    """Yield whether no other process writes this, and none will meanwhile. It is not waited for."""
    with ExitStack() as stack:
        output = _absolute(output)
        try:
            is_free = output not in _held and stack.enter_context(_hold(output, wait=False)) is None
        except InputError:
            is_free = False
        yield is_free


def check_owner(output: Path) -> None:
    """Raise InputError if this process, which has locked the output, is not the one to write it any more."""
    check_dvc()
    lock, descriptor = _held[_absolute(output)]
    if not _is_at(lock, descriptor):
        raise InputError(f"{lock} was removed meanwhile, so another process may be writing {output}: it is left alone")


@contextmanager
def _hold(output: Path, wait: bool = True) -> Iterator[None]:
    lock = _file(output)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(lock, output, wait)
    except OSError as error:
        raise InputError(f"{output} cannot be written, nor its lock: {error.strerror}: {lock}") from error
    _held[output] = lock, descriptor
    try:
        yield
    finally:
        del _held[output]
        if _is_at(lock, descriptor):
            lock.unlink()
        os.close(descriptor)


def _file(output: Path) -> Path:
    """Return the file that locks an output: in the project, or where that is read-only, beside the output."""
    folder = home(os.environ) / "locks"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        return output.with_name(f".{output.name}.lock.partial")
    return folder / f"{hashlib.sha256(os.fsencode(output)).hexdigest()[:16]}.lock"


def _acquired(lock: Path, output: Path, wait: bool) -> int:
    """Return the descriptor of the file `lock`, which this process has locked."""
    deadline = 0.0 if wait else -1.0
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        owner = ""
        try:
            # Of this kind, since it is not passed on to processes that are forked, which may live longer.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # one or the other, by the system
            owner = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        if not owner and _is_at(lock, descriptor):  # else its owner has just removed it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
            return descriptor
        os.close(descriptor)
        if owner and not deadline:
            deadline = time.monotonic() + WAIT_SECONDS
            warn(f"{output} is being written by {owner}: waiting {WAIT_SECONDS:.0f} s for it to end")
        elif owner and time.monotonic() > deadline:
            raise InputError(f"{output} is being written by {owner}. Let it end, or end it, and run this again.")
        time.sleep(0.1)


def _absolute(output: Path) -> Path:
    """Return the output's full path. Itself it may be a link, into DVC's cache, that is replaced."""
    return output.parent.resolve() / output.name


def _is_at(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _this_process() -> str:
    command = printable(shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]))
    return f"process {os.getpid()} ({command:.500}) since {time.strftime('%Y-%m-%d %H:%M:%S')}"

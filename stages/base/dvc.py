"""The DVC that runs this stage: what the stage wrote after its end would be taken for another's result."""

import os
import re
import shlex
import signal
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base.errors import InputError
from stages.base.text import warn

if TYPE_CHECKING:
    import psutil

STAGE = "DVC_STAGE"  # in the environment of all that DVC runs
CLIENT = "REPRONET_CLIENT"  # the number of the process whose work a fork does, see stages/start
OWNER = "REPRONET_OWNER"  # the process, by number and start, with whose end that of the server comes
LOOK_SECONDS = 0.5


def end_with_dvc() -> None:
    """Let this process be interrupted when the DVC that runs it has ended, in whatever way. Without one: nothing.

    A signal to DVC does not reach its stage, and the shell between the two may live on. Raises InputError if DVC has
    ended already.
    """
    if STAGE in os.environ:
        check_dvc()
        threading.Thread(target=_watch, name="watches DVC", daemon=True).start()


def check_dvc() -> None:
    """Raise InputError if DVC runs this process and has ended."""
    if STAGE in os.environ and not _lives():
        raise InputError(
            f"the DVC that ran this has ended ({STAGE}={os.environ[STAGE]} is set): its outputs stay as they are"
        )


def command_of_dvc() -> str:
    """Return the command of the DVC that runs this process, "" if none does."""
    process = _dvc() if STAGE in os.environ else None
    return shlex.join(process.cmdline()) if process is not None else ""


def owner() -> str:
    """Return the process whose stages share a server, by number and start: a sweep, or DVC; "" if there is none."""
    import psutil

    if OWNER in os.environ or STAGE not in os.environ:
        return os.environ.get(OWNER, "")
    with suppress(psutil.Error):  # it has just ended
        if process := _dvc():
            return identity(process.pid)
    return ""


def identity(number: int) -> str:
    """Return what no other process has on Linux, which may get its number; elsewhere, or if it has ended, ""."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return f"{number} {stat.rsplit(')', 1)[1].split()[19]}"


def _watch() -> None:
    while _lives():
        time.sleep(LOOK_SECONDS)
    with suppress(OSError):  # its terminal may have ended, too
        warn("the DVC that ran this has ended")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _lives() -> bool:
    import psutil

    try:
        process = _dvc()
        # One that was killed stays a zombie until its parent looks.
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@cache
def _dvc() -> "psutil.Process | None":
    """Return DVC's process: the nearest ancestor without what DVC has added to the environment. None: it has ended.

    It need not be called dvc: `python -m dvc`, and programs that use DVC as a library, are others. But what takes in
    the children of a process that has ended is no Python.
    """
    import psutil  # 10 ms

    for process in psutil.Process(int(os.environ.get(CLIENT, 0)) or None).parents():
        try:
            stage = process.environ().get(STAGE)
        except psutil.AccessDenied:
            stage = None
        if stage != os.environ[STAGE] and re.search("dvc|python", process.name(), re.IGNORECASE):
            return process
    return None

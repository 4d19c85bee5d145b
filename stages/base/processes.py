"""Processes: how many are worth having, what they do with signals, and what of the environment is not for them."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

Threads = int | Literal["auto"]
AUTO: Literal["auto"] = "auto"
_interrupted = False
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, and a terminal that was closed

# What of git's variables says who the user is and how git reaches others. The rest, which git sets for its hooks, leads
# to another repository than that of the current directory, or changes what git prints.
_GIT_MAY_KEEP = (
    *("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_", "GIT_EXEC_PATH"),
    *("GIT_ASKPASS", "GIT_HTTP_", "GIT_PROXY_", "GIT_SSH", "GIT_SSL_"),
    *("GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: Threads) -> int:
    """Return how many threads compute: as many as are given, or for "auto" one for each physical core at hand.

    A core that shows itself to the system as two computes no faster for it. If the process may
    use only some of those, each counts as a core of its own, up to the number of physical ones.
    """
    if threads != AUTO:
        return threads
    import psutil  # 0.02 s, which nobody else pays

    return min(cores(), psutil.cpu_count(logical=False) or cores())


def without_git_redirects(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what makes git, and DVC and MLflow, look at another repository."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("GIT_") or name.startswith(_GIT_MAY_KEEP)
    }


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: raise KeyboardInterrupt; but once, to let the end be orderly.

    A shell lets what it starts in the background ignore Ctrl-C, and nohup SIGHUP: that stays so.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)


def check_interrupted() -> None:
    """Raise the KeyboardInterrupt that was lost: one that is raised in a destructor, or within C, is ignored there."""
    global _interrupted
    if _interrupted:
        _interrupted = False
        raise KeyboardInterrupt


def ignore_signals() -> None:
    """Let nothing interrupt this process from now on: for an end that takes its time, but not for ever."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals that end processes back, so that one started here is not sent one before it can handle it.

    Call it in the main thread. Others, such as numpy's, may be given a signal, which the main thread would then handle
    all the same: so it notes it, and handles it afterwards.
    """
    came: list[int] = []
    are_held = True
    handlers: dict[int, Any] = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}

    def note(number: int, frame: FrameType | None) -> None:
        if are_held:
            came.append(number)
        else:  # while the handlers are put back
            handlers[number](number, frame)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        for number in handlers:
            signal.signal(number, note)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what waits is noted now
        are_held = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for noted in came:
            signal.raise_signal(noted)


def leave_signals_to_parent() -> None:
    """Let the parent, who gets them too, end this process: called by one that was started while signals were held."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's own handling, which a fork brings along
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    global _interrupted
    _interrupted = True
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGHUP:
        _leave_closed_terminal()
    raise KeyboardInterrupt


def _leave_closed_terminal() -> None:
    # To print to a terminal that is gone is an error, which would come in the way of an orderly end.
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

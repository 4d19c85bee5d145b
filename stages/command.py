"""What every command line of the project shares: how it starts, and how it fails."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM)


class InputError(ValueError):
    """Something that the user gave is wrong; the message names it, its value and what is accepted."""


def unknown(given: str, accepted: Collection[str]) -> str:
    """Return what to say after "unknown": which of the accepted names may be meant, and all of them."""
    names = {name.lower(): name for name in accepted}
    close = get_close_matches(given.lower(), names, n=1)
    hint = f" (did you mean {names[close[0]]}?)" if close else ""
    return f"{hint}; accepted: {', '.join(accepted)}"


def run(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, 1 with one `error:` line for an InputError, 130 when interrupted.

    SIGTERM is handled as Ctrl-C is, so that a killed stage closes its MLflow run and removes half-written files.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check_code_is_here()
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def paths(program: str, description: str | None, optional: Collection[str] = (), **names: str) -> dict[str, Any]:
    """Return the paths on the command line of a stage, which takes nothing else; `names` holds the help for each.

    An `optional` one that is not given is None.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, prog=f"python -m {program}"
    )
    for name, text in names.items():
        parser.add_argument(name, type=Path, help=text, nargs="?" if name in optional else None)
    return vars(parser.parse_args())


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back, lest a process that is started here gets one before it knows what to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Let the parent, who gets them too, end this process: called by one that was started while signals were held."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's own handling, which a fork brings along
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _check_code_is_here() -> None:
    # An experiment runs in a directory of its own. PYTHONPATH or PYTHONSAFEPATH can make it import the workspace's
    # code instead of its own, and it would then record other code than it ran.
    code, here = Path(__file__).resolve().parents[1], Path.cwd().resolve()
    if code != here:
        raise InputError(
            f"the code comes from {code}, but the current directory is {here}.\n"
            "Run this from the repository's root, with PYTHONPATH and PYTHONSAFEPATH unset"
            f" (PYTHONPATH={os.environ.get('PYTHONPATH', '')!r})."
        )

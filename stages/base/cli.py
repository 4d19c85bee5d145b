"""What every command line of the project shares: how it starts, and how it fails."""

import argparse
import atexit
import os
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from stages.base.dvc import end_with_dvc
from stages.base.errors import InputError
from stages.base.experiment import SWEEP, is_experiment, main_repository
from stages.base.files import NO_PLACE
from stages.base.processes import ignore_signals, interrupt_on_signals, without_git_redirects
from stages.base.text import warn

WAY_BACK = "git checkout HEAD -- params.yaml dvc.lock metrics"


def run(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, 1 with one `error:` line for an InputError, 130 when interrupted.

    SIGTERM, SIGHUP and the end of the DVC that runs this are handled as Ctrl-C is, so that a killed stage closes its
    MLflow run and removes half-written files. Nothing that is started from here is led to another git repository by
    the environment.
    """
    interrupt_on_signals()
    for name in os.environ.keys() - without_git_redirects(os.environ).keys():
        del os.environ[name]
    try:
        _check_code_is_here()
        end_with_dvc()
        main()
    except InputError as error:
        warn(f"error: {error}{_way_back()}")
        _end(1)
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        _end(1)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        warn(f"error: {error.filename or 'a file'}: {error.strerror}{_way_back()}")
        _end(1)
    except KeyboardInterrupt:
        warn(f"interrupted{_way_back()}")
        _end(130)
    _end(0)


def parser(program: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m PROGRAM`, whose --help shows the module's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {program}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def paths(program: str, doc: str | None, optional: Collection[str] = (), **names: str) -> dict[str, Any]:
    """Return the paths on the command line of a stage, which takes nothing else; `names` holds the help for each.

    An `optional` one that is not given is None.
    """
    arguments = parser(program, doc)
    for name, text in names.items():
        arguments.add_argument(name, type=Path, help=text, nargs="?" if name in optional else None)
    return vars(arguments.parse_args())


def _end(code: int) -> NoReturn:
    """Exit as Python does, but leave it to the system to free the libraries, for which Python takes 0.5 s."""
    # The first waits for threads, and executors tell theirs to end there.
    for last in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        with suppress(KeyboardInterrupt):  # ends the waiting, not what is done
            last()
    ignore_signals()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # whose reader has gone, or closed: Python has its own end for that
        sys.exit(code)
    os._exit(code)


def _way_back() -> str:
    """Return what to add to the end of a failed experiment that has changed the user's own params.yaml, else ""."""
    own = is_experiment(os.environ) and main_repository(os.environ) == Path.cwd()
    if not own or SWEEP in os.environ:
        return ""
    return "\nparams.yaml keeps this experiment's values; the commit's come back with\n  " + WAY_BACK


def _check_code_is_here() -> None:
    # An experiment runs in a directory of its own. PYTHONPATH or PYTHONSAFEPATH can make it import the workspace's
    # code instead of its own, and it would then record other code than it ran.
    code, here = Path(__file__).resolve().parents[2], Path.cwd().resolve()
    if code != here:
        raise InputError(
            f"the code comes from {code}, but the current directory is {here}.\n"
            "Run this from the repository's root, with PYTHONPATH and PYTHONSAFEPATH unset"
            f" (PYTHONPATH={os.environ.get('PYTHONPATH', '')!r})."
        )

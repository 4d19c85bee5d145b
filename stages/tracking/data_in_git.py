"""What git has to do with the data of an experiment: its commit takes what git may track, its copies lack the rest."""

import os
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from stages.base.errors import InputError
from stages.base.experiment import is_experiment, main_repository
from stages.base.params import NOTHING, RANDOM, WEIGHTS
from stages.base.text import warn
from stages.tracking.git import GitError, untracked

LIST = ".csv"  # what prepare.exclude names
LIMIT = "REPRONET_GIT_MB"  # the environment variable that lifts the limit


def check(path: Path, environment: Mapping[str, str]) -> None:
    """Warn of data at `path` that go into git with the experiment of this process, if it is part of one.

    Raises InputError if they are too large, and if this is a directory of `dvc exp run --temp` or of DVC's queue that
    lacks what the repository has at `path`, since git does not hold it.
    """
    if not is_experiment(environment) or not _is_inside(path):
        return
    repository = main_repository(environment)
    if repository == Path.cwd():
        if said := going_into_git(path, environment):
            warn(f"warning: {said}")
    elif not any(Path(f"{one}.dvc").exists() for one in (path, *path.parents)):
        lost = [name for name in untracked(_only(path), folder=repository, ignored=True) if not os.path.lexists(name)]
        if lost := [name for name in lost if not Path(f"{name}.dvc").exists()]:
            raise InputError(
                f"{len(lost):,} files of {path} are not here, since git does not hold them, such as {lost[0]}.\n"
                f"{_dvc_add(path)} and a commit of {path}.dvc bring them into experiments; so does tools.sweep."
            )


def going_into_git(path: Path, environment: Mapping[str, str]) -> str:
    """Return what to say of data at `path` that an experiment's commit will hold, "" if there are none.

    Of a table alone nothing is to be said, as long as it is not too large: git is the place for a list.
    Raises InputError if they are more than the limit, in megabytes.
    """
    if not _is_inside(path) or not (files := untracked(_only(path))):
        return ""
    size, limit = sum(os.lstat(name).st_size for name in files) / 1e6, environment.get(LIMIT, "10")
    what = f"{len(files):,} file{'s' * (len(files) > 1)} of {path}, {size:.1f} MB,"
    try:
        too_large = size > float(limit)
    except ValueError as error:
        raise InputError(f"{LIMIT}: {limit!r}, should be a number of megabytes") from error
    if too_large:
        raise InputError(
            f"{what} would go into git with the experiment's commit, and {limit} MB are allowed.\n"
            f"{_dvc_add(path)} has DVC keep them instead; {LIMIT}={size + 1:.0f} in the environment lifts the limit."
        )
    if path.suffix == LIST:
        return ""
    return f"{what} go into git with the experiment's commit; {_dvc_add(path)} has DVC keep them instead"


def warn_of_lost(paths: Iterable[Path], environment: Mapping[str, str]) -> None:
    """Warn of data at `paths` that nobody could get back: neither git nor DVC has them, or will have them."""
    for path in paths:
        if not path.exists() or path in (NOTHING, WEIGHTS / RANDOM):
            continue
        lost = "it is" if not _is_inside(path) else ""
        if not lost and not any(Path(f"{one}.dvc").exists() for one in (path, *path.parents)):
            with suppress(GitError):  # of which the run in MLflow has warned
                files = set(untracked(_only(path), ignored=True))
                files -= set(untracked(_only(path))) if is_experiment(environment) else set()
                lost = f"{len(files):,} file{'s' * (len(files) > 1)} of it {'are' if len(files) > 1 else 'is'}" * bool(
                    files
                )
        if lost:
            warn(
                f"warning: results from {path} cannot be rebuilt once it is another: {lost} in neither git nor DVC."
                + (f" {_dvc_add(path)} keeps it." if _is_inside(path) else " A copy in the project can be kept.")
            )


def _dvc_add(path: Path) -> str:
    return f"`{'git' if path.suffix == LIST else 'dvc'} add {shlex.quote(str(path))}`"


def _is_inside(path: Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts  # else git, which holds the repository, fails


def _only(path: Path) -> str:
    return f":(literal){path}"  # whatever patterns its name may look like

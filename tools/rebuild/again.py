"""A run's stages again, in an empty folder."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.experiment import home
from stages.base.locks import locked_if_free
from stages.base.storage import GIGABYTES
from stages.base.text import say
from stages.tracking.git import GitError, git
from stages.tracking.result import ResultFiles
from tools.commits import cached, is_intact, list_of
from tools.dvclock import digests_in
from tools.rebuild.record import Record
from tools.runs import Runs
from tools.sweep.copies import check_out, dvc

SHOWN_LINES = 12  # of what a stage that failed has printed
# Settings of the run that the rebuilding process decides anew.
OWN_VARIABLES = ("CUDA_VISIBLE_DEVICES", "PYTHON")


def folder_of(environment: Mapping[str, str]) -> Path:
    """Return the folder in which runs are rebuilt, each in one of its own."""
    return home(environment) / "rebuild"


def remove_left(place: Path) -> None:
    """Remove what rebuilds that were killed have left in their common folder."""
    for folder in place.iterdir():
        with locked_if_free(folder) as is_free:
            if is_free:
                shutil.rmtree(folder, ignore_errors=True)


def restored(record: Record, folder: Path) -> Path:
    """Put the run's commit, patch and params into `folder`, and return where the project is there.

    Raises InputError if the repository lacks the commit, or the patch does not fit.
    """
    try:
        git("cat-file", "-e", f"{record.commit}^{{commit}}")
    except GitError as error:
        raise InputError(f"its commit {record.commit[:9]} is not in this repository; git fetch may bring it") from error
    try:
        project = check_out(folder, record.commit, record.patch)
    except GitError as error:
        raise InputError(f"its git.patch does not fit its commit: {error}") from error
    (project / "dvc.lock").unlink(missing_ok=True)
    return project


def bring(path: Path, project: Path) -> None:
    """Let the project have what the user has at `path`, from DVC or from the workspace, unless git has brought it.

    Raises InputError if neither has it.
    """
    if (project / path).exists():
        return
    kept = next((Path(f"{one}.dvc") for one in (path, *path.parents) if (project / f"{one}.dvc").exists()), None)
    if kept:
        cache = Path(dvc("cache", "dir")).resolve()
        dvc("remote", "add", "--local", "--force", "cache_of_origin", str(cache), folder=project)
        for remote in (["--remote", "cache_of_origin"], []):
            with suppress(InputError):
                dvc("pull", "--quiet", *remote, str(kept), folder=project)
                return
        raise InputError(f"neither DVC's cache nor its remote has {path}")
    if not path.exists():
        raise InputError(f"{path} is in neither git nor DVC, nor in the workspace")
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path, project / path) if path.is_dir() else shutil.copy(path, project / path)


def bring_prepared(record: Record, project: Path) -> bool:
    """Let the project have the run's prepared data if DVC's cache has all of them; return whether it has."""
    made = digests_in(record.artifact("dvc.lock").read_text(encoding="utf-8"), "outs").get("prepare", {})
    if not made or not all(digest and list_of(digest) and is_intact(digest) for digest in made.values()):
        return False
    for path, digest in made.items():
        for name, one in list_of(digest).items():
            (project / path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached(one), project / path / name)
    shutil.copyfile(record.artifact("dvc.lock"), project / "dvc.lock")  # which says what they were prepared from
    say("  its prepared data are those of DVC's cache")
    return True


def run_stages(record: Record, project: Path, python: Path, *stages: str) -> None:
    """Run stages with the run's own settings. Raises InputError with the end of what one that fails has printed."""
    foreign = ("DVC_", "GIT_", "MLFLOW_", "REPRONET_")
    # How large a cache may be is this machine's, not the run's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign) or name == GIGABYTES}
    own = record.environment.get("variables", {})
    settings = {name: value for name, value in own.items() if not name.startswith(OWN_VARIABLES)}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        [str(python), "-m", "dvc", "repro", "--no-run-cache", "--force", "--single-item", *stages],
        cwd=project,
        env=kept | settings | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise InputError("\n    ".join(["a stage failed:", *ended.stdout.splitlines()[-SHOWN_LINES:]]))
    ran = [line for line in ended.stdout.splitlines() if line.startswith("Running stage")]
    if len(ran) != len(stages):
        raise InputError(f"{len(ran)} of {len(stages)} stages have run")


def bring_back(store: Runs, record: Record, files: ResultFiles, *stages: str) -> list[str]:
    """Bring a run's weights and model to MLflow, and the outputs of the stages that have run to DVC's cache.

    Return what is there again. Raises InputError, and has brought nothing to MLflow, if today's code cannot read the
    weights or the data, or DVC fails.
    """
    from stages.batches.prepared import DatasetInfo
    from stages.nets.weights import load_weights
    from stages.tracking.writer import put_model_back  # with torch

    DatasetInfo(files.prepared)
    load_weights(files.weights)
    outs = digests_in((files.root / "dvc.lock").read_text(encoding="utf-8"), "outs")
    made = {path: digest for stage in stages for path, digest in outs[stage].items()}
    cache = Path(dvc("cache", "dir")).resolve()
    dvc("cache", "dir", "--local", str(cache), folder=files.root)
    dvc("commit", "--force", "--quiet", *stages, folder=files.root)
    with store.reading():
        put_model_back(store.store, record.run.id, files)
    back = [path for path in made if made[path] and cached(made[path]).exists()]
    return ["its weights and model in MLflow", f"{listed(back, 5)} in DVC's cache"]

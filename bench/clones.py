"""Fresh clones of the committed project, to measure in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow

from stages.base.processes import without_git_redirects
from stages.tracking.git import git

ENVIRONMENT = {
    name: value for name, value in without_git_redirects(os.environ).items() if not name.startswith(("DVC_", "MLFLOW_"))
} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


@contextmanager
def fresh() -> Iterator[Path]:
    """Yield a clone of the project's last commit, without data, results or store; it is removed afterwards."""
    with TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        git("clone", "-q", ".", str(clone))
        for key, value in (("user.name", "bench"), ("user.email", "bench@localhost")):
            git("config", key, value, folder=clone)
        yield clone


def start(clone: Path, *command: str) -> "subprocess.Popen[str]":
    """Start a command in a clone; what it prints can be read when it has ended."""
    return subprocess.Popen(
        command, cwd=clone, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a command and return what it printed. Raises RuntimeError if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r} failed:\n{output}")
    return output


def last_run(clone: Path) -> "tuple[mlflow.MlflowClient, mlflow.entities.Run]":
    """Return the run in the clone's store that was started last, and a client of that store."""
    client = mlflow.MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name("repronet")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)
    return client, run


def statuses(clone: Path) -> dict[str, list[str]]:
    """Return the status of each run in the clone's store by the run's name; "FINISHED" only where it was evaluated."""
    client = mlflow.MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name("repronet")
    found: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id]) if experiment else []:
        complete = run.info.status != "FINISHED" or "test/accuracy" in run.data.metrics
        found.setdefault(str(run.info.run_name), []).append(run.info.status if complete else "not evaluated")
    return found

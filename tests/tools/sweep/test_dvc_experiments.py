"""`dvc exp run` in its forms: each experiment is one run in the main repository's store, named as DVC named it."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project

SHORT = ["-S", "train.epochs=2"]


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Iterator[Project]:
    project = make_project()
    (project.root / ".venv").symlink_to(sys.prefix)  # for make
    project("dvc", "repro", "prepare")
    yield project
    project.end_workers()


def check_runs(project: Project, runs: list[Any]) -> None:
    """The runs are those of experiments of DVC, made elsewhere and logged here."""
    refs = project("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    names = {ref.rsplit("/", 1)[1] for ref in refs if ref.count("/") == 4 and not ref.startswith("refs/exps/exec")}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.info.run_name == run.data.tags["dvc.exp_name"]
        assert run.info.run_name in names
        assert run.data.tags["dvc.baseline_rev"] == project("git", "rev-parse", "HEAD").strip()
        assert "test/accuracy" in run.data.metrics
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(project.root / "mlartifacts")


@pytest.mark.slow
def test_several_values_are_queued_and_run_two_at_once(project: Project) -> None:
    # SGD's momentum does not get in the way of Adam: an optimizer's arguments stand under its name.
    project("dvc", "exp", "run", "--queue", "-S", "+train.optimizer.arguments.SGD.momentum=0.8", *SHORT,
            "-S", "train.optimizer.name=SGD,Adam,AdamW")  # fmt: skip
    project("dvc", "queue", "start", "-j", "2", REPRONET_SWEEP="queued")
    deadline = time.monotonic() + 180
    while project("dvc", "queue", "status").count("Success") < 3:
        assert time.monotonic() < deadline, project("dvc", "queue", "status")
        time.sleep(2)
    runs = [run for run in project.runs() if run.data.tags.get("sweep") == "queued"]
    assert sorted(run.data.params["train.optimizer.name"] for run in runs) == ["Adam", "AdamW", "SGD"]
    check_runs(project, runs)


@pytest.mark.slow
def test_run_all(project: Project) -> None:
    # DVC starts as many workers as are missing: those of an earlier test count, and would end before they are needed.
    project.end_workers()
    project("dvc", "exp", "run", "--queue", "-S", "train.seed=6,7", *SHORT)
    project("dvc", "exp", "run", "--run-all", "-j", "2")
    runs = [run for run in project.runs() if run.data.params["train.seed"] in ("6", "7")]
    assert len(runs) == 2
    check_runs(project, runs)
    shown = project("make", "-o", ".venv/installed", "show", COLUMNS="200")
    header = next(line for line in shown.splitlines() if line.startswith("experiment"))
    assert "valid_accuracy" in header
    assert "train.seed" in header
    assert "stages/" not in shown
    assert "train.batch_size" not in header, "it is the same in all"
    assert len(header.split()) < 20

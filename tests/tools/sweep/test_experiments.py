"""`dvc exp run` in its forms: each experiment is one run in the main repository's store, named as DVC named it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, write_image
from tools.sweep.experiments import copy_repository

SHORT = ["-S", "train.epochs=2"]


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Project:
    project = make_project()
    (project.root / ".venv").symlink_to(sys.prefix)  # for make
    project("dvc", "repro", "prepare")
    return project


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
    project("dvc", "exp", "run", "--queue", "-S", "train.seed=6,7", *SHORT)
    project("dvc", "exp", "run", "--run-all", "-j", "2")
    runs = [run for run in project.runs() if run.data.params["train.seed"] in ("6", "7")]
    assert len(runs) == 2
    check_runs(project, runs)
    shown = project("make", "-o", ".venv/installed", "show", COLUMNS="200")
    header = next(line for line in shown.splitlines() if "Experiment" in line)
    assert "valid_accuracy" in header
    assert "train.seed" in header
    assert "stages/" not in shown
    assert "train.batch_size" not in header, "it is the same in all"
    assert len(header.split()) < 20


def test_links_of_the_user_are_copied_as_links(
    make_project: Callable[[], Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    write_image(project.root / "data/raw/own/a/1.png", 0)
    (project.root / "data/weights/start.pt").write_bytes(b"weights")
    links = {"again": "a", "a/2.png": "1.png", "none": "nowhere.png", "out": "/etc/hostname"}
    for name, target in links.items():
        (project.root / "data/raw/own" / name).symlink_to(target)
    monkeypatch.chdir(project.root)
    copy_repository(tmp_path / "copy", "HEAD", b"")
    copied = tmp_path / "copy/data/raw/own"
    assert {name: str((copied / name).readlink()) for name in links} == links
    assert (copied / "a/1.png").samefile(project.root / "data/raw/own/a/1.png")
    assert (tmp_path / "copy/data/weights/start.pt").read_bytes() == b"weights"


@pytest.mark.slow
@pytest.mark.parametrize("by_dvc", [False, True])
def test_own_images_are_in_every_experiment(make_project: Callable[[], Project], by_dvc: bool) -> None:
    # DVC checks out what it keeps; of what nobody keeps, a sweep's copy has links, which do not lead out of the folder.
    project = make_project()
    for seed in range(40):
        write_image(project.root / "data/raw/own" / "ab"[seed % 2] / f"{seed:02}.png", seed)
    if by_dvc:
        project("dvc", "add", "-q", "data/raw/own")
        project("git", "add", "-A")
        project("git", "commit", "-q", "-m", "own images")
    own = ["prepare.source=folder", "prepare.path=data/raw/own", "train.epochs=1"]
    options = [word for value in own for word in ("-S", value)]
    swept = project("python", "-m", "tools.sweep", "--jobs", "1", *options, "-S", "train.seed=3")
    assert "validation accuracy" in swept
    if by_dvc:
        project("dvc", "exp", "run", "--temp", *options)
    runs = project.runs()
    assert len(runs) == 1 + by_dvc
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params["prepare.path"] == "data/raw/own"
        assert "test/accuracy" in run.data.metrics

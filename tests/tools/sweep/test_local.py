"""Experiments as local processes: their copies, what their output says, and how they are ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Project, write_image
from tests.tools.sweep.conftest import experiment
from tools.sweep import local
from tools.sweep.experiments import Ending, Phase, State
from tools.sweep.local import (
    LocalRunner,
    copy_repository,
    data_are_prepared,
    end_groups,
    left_running,
    reason_of_failure,
)


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


@pytest.fixture
def runner(project: Project, monkeypatch: pytest.MonkeyPatch) -> LocalRunner:
    """One whose experiments run a shell instead of DVC."""
    monkeypatch.chdir(project.root)
    runner = LocalRunner("fake", project("git", "rev-parse", "HEAD").strip(), jobs=1, gpus=[])
    runner.clear()
    (project.root / ".dvc/tmp/sweeps/fake/.template").mkdir(parents=True)
    (project.root / "sweeps/fake").mkdir(parents=True, exist_ok=True)
    return runner


def wait_while(runner: LocalRunner, name: str, phase: Phase) -> None:
    deadline = time.monotonic() + 20
    while runner.poll(name) is phase:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_experiment_goes_through_its_phases(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "while [ ! -e go ]; do sleep 0.1; done; echo \"Running stage 'train':\"; sleep 60"
    monkeypatch.setattr(local, "DVC", ["sh", "-c", script])
    runner.start(experiment("one").description)
    assert runner.poll("one") is Phase.PREPARING
    Path(".dvc/tmp/sweeps/fake/one/go").touch()
    wait_while(runner, "one", Phase.PREPARING)
    assert runner.poll("one") is Phase.TRAINING
    assert runner.report("one") == []
    runner.stop("one")
    assert runner.poll("one") is Phase.ENDED
    assert runner.collect("one") == Ending(State.FAILED, "dvc exited with -15")
    assert not Path(".dvc/tmp/sweeps/fake/one").exists()
    assert Path("sweeps/fake/one.log").exists()
    runner.clear()
    assert not Path(".dvc/tmp/sweeps/fake").exists()


def test_what_failed_says_why(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local, "DVC", ["sh", "-c", "echo ERROR: failed to reproduce; echo error: the loss is nan; exit 1"]
    )
    runner.start(experiment("bad").description)
    wait_while(runner, "bad", Phase.PREPARING)
    assert runner.poll("bad") is Phase.ENDED
    assert runner.collect("bad") == Ending(State.FAILED, "error: the loss is nan")


@pytest.mark.parametrize(
    ("line", "prepared"),
    [
        ("Running stage 'prepare':", False),
        ("Stage 'prepare' is cached - skipping run, checking out outputs", False),
        ("ERROR: failed to reproduce 'train'", False),
        ("Running stage 'train':", True),
        ("Stage 'train' is cached - skipping run, checking out outputs", True),
        ("Stage 'train' didn't change, skipping", True),
    ],
)
def test_data_are_prepared_once_dvc_comes_to_train(line: str, prepared: bool) -> None:
    assert data_are_prepared(f"Reproducing experiment 'a'\n{line}\n") is prepared


def test_the_reason_of_a_failure_is_the_stage_s_or_dvc_s() -> None:
    assert reason_of_failure("ERROR: failed to reproduce 'train'\nerror: the loss is nan\n") == "error: the loss is nan"
    assert reason_of_failure("some\nERROR: failed to reproduce 'train'\n") == "ERROR: failed to reproduce 'train'"
    assert reason_of_failure("") == ""


def test_only_processes_of_a_sweep_are_ended(tmp_path: Path) -> None:
    user = subprocess.Popen(["sleep", "60"], cwd=tmp_path, start_new_session=True)
    environment = {**os.environ, "REPRONET_SWEEP": "a"}
    ours = subprocess.Popen(["sleep", "60"], cwd=tmp_path, env=environment, start_new_session=True)
    groups = left_running(tmp_path)
    assert groups == {ours.pid}
    end_groups(groups)
    assert ours.poll() == -signal.SIGTERM
    assert user.poll() is None
    user.kill()
    user.wait()


@pytest.mark.parametrize(
    ("gpus", "jobs", "visible"),
    [(["3", "5"], 2, ["3", "5"]), (["3", "5"], 3, ["3", "5", "3"]), (["3"], 2, [None, None]), ([], 1, [None])],
)
def test_each_job_gets_a_gpu_where_there_are_several(
    project: Project, monkeypatch: pytest.MonkeyPatch, gpus: list[str], jobs: int, visible: list[str | None]
) -> None:
    monkeypatch.chdir(project.root)
    runner = LocalRunner("gpus", "", jobs, gpus)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in runner._free] == visible

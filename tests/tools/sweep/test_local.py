"""Experiments as local processes: their copies, what their output says, and how they are ended."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Project, wait_until
from tests.tools.sweep.conftest import experiment
from tools.sweep import local
from tools.sweep.experiments import Ending, Phase, State
from tools.sweep.local import (
    LocalRunner,
    data_are_prepared,
    end_groups,
    left_running,
    reason_of_failure,
)


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
    wait_until(lambda: runner.poll(name) is not phase)


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

"""Trainings that are killed, with DVC and all: run again they go on, in the same run, to the same bytes."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest

from tests.conftest import YAML_READER, Project

EPOCHS = 200  # 6 s; a checkpoint is written every second
STEPS = 20  # an epoch
REPRO = ("dvc", "repro")
AGAIN = ("dvc", "repro", "--no-run-cache")
TEMP = ("dvc", "exp", "run", "--temp", "--name", "killed")


def outputs(lock: str) -> dict[str, str]:
    """The digest of each output in a dvc.lock."""
    return {out["path"]: out["md5"] for stage in YAML_READER.load(lock)["stages"].values() for out in stage["outs"]}


def made(make_project: Callable[[], Project], epochs: int = EPOCHS) -> Project:
    project = make_project()
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30 ", f"epochs: {epochs} ")
    project.edit("params.yaml", "log_steps: 0 ", f"log_steps: {STEPS // 2} ")
    project("git", "commit", "-qam", "a longer training")
    return project


@pytest.fixture(scope="module")
def expected(make_project: Callable[[], Project]) -> dict[str, str]:
    return undisturbed(made(make_project))


def undisturbed(project: Project) -> dict[str, str]:
    """The digests of a training that nobody disturbs."""
    project(*REPRO)
    return outputs((project.root / "dvc.lock").read_text())


def checkpoints(project: Project) -> list[Path]:
    return list((project.root / ".repronet/checkpoints").glob("*.safetensors"))


def written(project: Project) -> float:
    """When the last checkpoint was written; 0 if there is none."""
    with suppress(FileNotFoundError):  # it was just removed
        return max((path.stat().st_mtime for path in checkpoints(project)), default=0.0)
    return 0.0


def killed(
    project: Project, command: tuple[str, ...], wait: Callable[[Project], object], number: int = signal.SIGKILL
) -> bool:
    """Run a command, and kill all that it has started `wait` after its first checkpoint; return whether it still ran.

    SIGKILL is what a power cut is, as far as processes go.
    """
    before, process = written(project), project.start(*command)
    while written(project) <= before and process.poll() is None:
        time.sleep(0.01)
    wait(project)
    running = process.poll() is None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.communicate()
    return running


def after(seconds: float) -> Callable[[Project], None]:
    return lambda _project: time.sleep(seconds)


def in_a_write(project: Project) -> None:
    """Return while a checkpoint is being written."""
    folder, deadline = project.root / ".repronet/checkpoints", time.monotonic() + 20
    while not any(name.endswith(".partial") for name in os.listdir(folder)):  # noqa: PTH208 (the quickest)
        assert time.monotonic() < deadline


def resumed(printed: str) -> int:
    """The epoch after which a training has gone on."""
    [epoch] = re.findall(r"goes on after epoch (\d+)", printed)
    return int(epoch)


def check(project: Project, lock: str, expected: dict[str, str], epoch: int, epochs: int = EPOCHS) -> None:
    """There is one run, with each point once, and no checkpoint any more."""
    assert outputs(lock) == expected
    [run] = project.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags.get("resumed.epoch") == str(epoch), "also within the first"
    assert "mlflow.note.content" not in run.data.tags
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    for name, distance, last in [("train/loss", 1, epochs), ("step/loss", STEPS // 2, STEPS * epochs)]:
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(distance, last + 1, distance))
    assert checkpoints(project) == []


@pytest.mark.slow
def test_power_is_cut(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    assert killed(project, REPRO, after(random.uniform(0, 1)))
    assert killed(project, REPRO, in_a_write)
    printed = project(*REPRO)
    check(project, (project.root / "dvc.lock").read_text(), expected, resumed(printed))
    history = pd.read_csv(project.root / "metrics/train.csv")
    assert history["epoch"].tolist() == list(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_ctrl_c(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    assert killed(project, REPRO, after(0), signal.SIGINT)
    [run] = project.runs()
    assert run.info.status == "KILLED"
    printed = project(*REPRO)
    check(project, (project.root / "dvc.lock").read_text(), expected, resumed(printed))


@pytest.mark.slow
def test_an_experiment_in_a_directory_of_its_own(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    assert killed(project, TEMP, after(1))
    printed = project(*TEMP)
    check(project, lock_of(project, "killed"), expected, resumed(printed))


@pytest.mark.slow
def test_an_experiment_of_a_sweep(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    sweep = project.start("python", "-m", "tools.sweep", "--name", "s", "-S", "train.seed=0")
    while not checkpoints(project):
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.01)
    copies = project.root / ".dvc/tmp/sweeps"
    [training] = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        # A process that has just ended has none of these.
        if "train" in (process.info["cmdline"] or []) and Path(process.info["cwd"] or "/").is_relative_to(copies)
    ]
    training.kill()
    printed, _ = sweep.communicate()
    assert sweep.returncode == 0, printed
    [run] = project.runs()
    check(project, lock_of(project, run.info.run_name), expected, int(run.data.tags["resumed.epoch"]))


def lock_of(project: Project, experiment: str) -> str:
    """The dvc.lock of an experiment."""
    [ref] = project("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}").split()
    return project("git", "show", f"{ref}:dvc.lock")


@pytest.mark.torture
def test_many_times(make_project: Callable[[], Project]) -> None:
    """20 trainings, each killed up to three times; what became of each is printed: pytest -s."""
    epochs, seed = 6 * EPOCHS, random.randrange(1000)
    print("random seed:", seed)
    chance, after_a_checkpoint, whole = random.Random(seed), 0, made(make_project, epochs)
    expected = undisturbed(whole)
    [run] = whole.runs()
    print(f"undisturbed: {run.data.metrics['seconds/training']:.1f} s")
    for number in range(20):
        project, said = made(make_project, epochs), []
        for _ in range(chance.randint(1, 3)):
            seconds = chance.uniform(0, 3)
            is_written = chance.random() < 1 / 3
            assert killed(project, AGAIN, in_a_write if is_written else after(seconds))
            said.append("in a write" if is_written else f"{seconds:.1f} s after one")
        printed = project(*AGAIN)
        epoch = resumed(printed)
        after_a_checkpoint += epoch <= epochs - 2
        check(project, (project.root / "dvc.lock").read_text(), expected, epoch, epochs)
        rest = project.runs()[0].data.metrics["seconds/training"]
        shutil.rmtree(project.root)
        print(f"{number + 1}: killed {', '.join(said)}; went on after epoch {epoch}, the rest in {rest:.1f} s")
    assert after_a_checkpoint >= 12

"""A training of several processes: one that is killed or hangs starts anew with all, from the last checkpoint."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests import test_killed
from tests.conftest import Project, free_port
from tests.test_killed import REPRO, after, check, killed, outputs, resumed, undisturbed, written

PROCESSES, EPOCHS = 2, 120
TRAIN = ["python", "-m", "stages.train", "data/prepared", "models/net.safetensors", "metrics/train.csv"]
SHORT = {"REPRONET_TIMEOUT_SECONDS": "10", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}


def made(make_project: Callable[[], Project]) -> Project:
    project = test_killed.made(make_project, EPOCHS)
    project.edit("params.yaml", "processes: 1 ", f"processes: {PROCESSES} ")
    project.edit("params.yaml", "threads: 2 ", "threads: 1 ")
    project.edit("params.yaml", "checkpoint_minutes: 10 ", "checkpoint_minutes: 0.01 ")  # within epochs, too
    project("git", "commit", "-qam", "in several processes")
    return project


@pytest.fixture(scope="module")
def expected(make_project: Callable[[], Project]) -> dict[str, str]:
    return undisturbed(made(make_project))


def processes(project: Project) -> Iterator[tuple[str, psutil.Process]]:
    """The training's processes, each with its number, and "" for what has started them."""
    for process in psutil.process_iter():
        try:
            words, here = process.cmdline(), process.cwd()
            if here == str(project.root) and ("stages.train" in words or words[-4:-3] == ["train"]):
                yield process.environ().get("RANK", ""), process
        except psutil.Error:  # it has just ended
            continue


def member(project: Project, number: int) -> psutil.Process:
    """The process of this number, once it runs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for found, process in processes(project):
            if found == str(number):
                return process
        time.sleep(0.05)
    pytest.fail(f"there is no process {number}")


def wait_for_checkpoint(project: Project, restarts: int = 0) -> None:
    """Wait until a checkpoint is written, by the processes of this restart."""
    before, deadline = 0.0, time.monotonic() + 120
    if restarts:
        while True:
            assert time.monotonic() < deadline
            environment = member(project, 0).environ()
            if environment["TORCHELASTIC_RESTART_COUNT"] == str(restarts):
                break
            time.sleep(0.05)
        before = written(project)
    while written(project) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lock(project: Project) -> str:
    return (project.root / "dvc.lock").read_text()


def last_resumed(printed: str) -> int:
    """The epoch after which a training that was interrupted several times has gone on the last time."""
    return resumed(re.findall(r"goes on after epoch \d+", printed)[-1])


def none_is_left(project: Project) -> bool:
    """Whether all processes have ended, within some seconds."""
    deadline = time.monotonic() + 20
    while any(processes(project)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_one_is_killed_then_the_other_and_one_hangs(
    make_project: Callable[[], Project], expected: dict[str, str], tmp_path: Path
) -> None:
    project, temporary = made(make_project), tmp_path / "temporary"
    temporary.mkdir()
    repro = project.start(*REPRO, **SHORT, TMPDIR=str(temporary))
    wait_for_checkpoint(project)
    member(project, 0).kill()
    wait_for_checkpoint(project, restarts=1)
    member(project, 1).kill()
    wait_for_checkpoint(project, restarts=2)
    member(project, 1).suspend()
    printed, _ = repro.communicate()
    assert repro.returncode == 0, printed
    for time_ in (1, 2, 3):
        assert f"a process of the training was killed, or hung: all start anew, {time_} of 3 times" in printed
    check(project, lock(project), expected, last_resumed(printed), EPOCHS)
    assert none_is_left(project)
    assert [path.name for path in temporary.iterdir() if "torchelastic" in path.name] == []
    assert list(temporary.glob("repronet-[!0-9]*")) == [], "the server's folder alone has a number"


@pytest.mark.slow
def test_all_end_with_what_has_started_them(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    for number in (signal.SIGINT, signal.SIGKILL):
        assert killed(project, REPRO, after(0), number)
        assert none_is_left(project)
        [run] = project.runs()
        assert run.info.status == "KILLED"
    printed = project(*REPRO)
    check(project, lock(project), expected, resumed(printed), EPOCHS)


@pytest.mark.slow
def test_one_is_killed_too_often(make_project: Callable[[], Project]) -> None:
    project = made(make_project)
    project(*["dvc", "repro", "prepare"])
    train = project.start(*TRAIN)
    last = None
    while train.poll() is None:
        for found, process in processes(project):
            if found == "1" and process != last:
                last = process
                process.kill()
        time.sleep(0.1)
    printed, _ = train.communicate()
    assert train.returncode == 1
    assert "error: process 1 of the training was killed by SIGKILL, also after 3 restarts" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_what_is_refused_is_said_once(make_project: Callable[[], Project]) -> None:
    project = made(make_project)
    project(*["dvc", "repro", "prepare"])
    for old, new, message in [
        ("lr: null ", "lr: 1e30 ", "the loss is "),
        ("name: Net ", "name: resnet18 ", "train.processes: 2, but resnet18 has batch norms"),
    ]:
        project.edit("params.yaml", old, new)
        said = project(*TRAIN, fails=True)
        assert said.count("error: ") == 1, said
        assert f"error: {message}" in said
        assert "start anew" not in said
        assert "Traceback" not in said
        project("git", "checkout", "-q", "params.yaml")
    assert not (project.root / "models/net.safetensors").exists()


def started_one_by_one(projects: Sequence[Project]) -> "list[subprocess.Popen[str]]":
    """The processes of a training, in a project each, as a scheduler starts them."""
    where = {"WORLD_SIZE": str(len(projects)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [project.start(*TRAIN, RANK=str(number), **where) for number, project in enumerate(projects)]


@pytest.mark.slow
def test_a_scheduler_starts_them(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    project = made(make_project)
    project(*["dvc", "repro", "prepare"])
    members = started_one_by_one([project] * PROCESSES)
    for number, process in enumerate(members):
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert bool(printed) == (number == 0), "the first alone prints"
    project("dvc", "commit", "-f", "train")
    trained = outputs(lock(project))
    assert {name: trained[name] for name in ("data/prepared", "models/net.safetensors")} == {
        name: expected[name] for name in ("data/prepared", "models/net.safetensors")
    }
    [run] = project.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["train.processes"] == str(PROCESSES)


@pytest.mark.slow
def test_clones_that_differ_are_named(make_project: Callable[[], Project]) -> None:
    projects = [made(make_project) for _ in range(PROCESSES)]
    for project in projects:
        project(*["dvc", "repro", "prepare"])
    projects[1].edit("params.yaml", "lr: null ", "lr: 0.01 ")
    members = started_one_by_one(projects)
    said = [process.communicate()[0] for process in members]
    assert [process.returncode for process in members] != [0, 0]
    assert "error: process 1 of the training, on " in said[1]
    assert "has other than the first: params.optimizer.lr" in said[1]

"""Stages whose DVC ends before them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Project, wait_until

# A stage without torch, which takes as long as the test wants.
WAITS = """
import sys, time
from pathlib import Path
from stages.base import cli, dvc
from stages.base.files import replacing
def main():
    try:
        with replacing(Path("out")) as partial:
            partial.write_text("new")
            while not Path(sys.argv[1]).exists():
                time.sleep(0.05)
    finally:
        time.sleep(0.5)  # as the run in MLflow is closed
        Path("closed").touch()
dvc.LOOK_SECONDS = float(sys.argv[2])
cli.run(main)
"""
PIPELINE = """
stages:
  waits:
    cmd: {before}python -m stages.waits {go} {look}{after}
    outs: [out]
"""


def left(project: Project) -> list[psutil.Process]:
    """The processes that run stages in the project, or in folders of DVC's there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:3] == ["-m", "stages.waits"] and project.root in Path(process.cwd(), "x").parents:
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.fixture
def waiting(project: Project) -> Iterator[Callable[..., Project]]:
    """A function that gives a project with a stage that waits for the file `go`."""

    def make(before: str = "", after: str = "", look: float = 0.1) -> Project:
        (project.root / "stages/waits.py").write_text(WAITS)
        go = project.root / "go"
        (project.root / "dvc.yaml").write_text(PIPELINE.format(before=before, go=go, look=look, after=after))
        (project.root / "dvc.lock").unlink(missing_ok=True)
        with (project.root / ".gitignore").open("a") as file:
            file.write("/go\n/closed\n")
        project("git", "add", "-A")
        project("git", "commit", "-qm", "waits")
        return project

    yield make
    for process in left(project):
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after", ["", "; true"])  # of two commands the shell stays between DVC and the stage
def test_a_stage_ends_with_its_dvc(waiting: Callable[..., Project], number: int, after: str) -> None:
    project = waiting(after=after)
    process = project.start("dvc", "repro")
    wait_until((project.root / ".out.partial").exists)
    process.send_signal(number)
    wait_until(lambda: not left(project))  # and before anybody asks for DVC's exit status
    assert (project.root / "closed").exists()
    assert process.communicate()[0].splitlines()[-2:] == ["the DVC that ran this has ended", "interrupted"]
    assert not list(project.root.glob("*out*"))
    assert list((project.root / ".repronet/locks").iterdir()) == []
    (project.root / "go").touch()
    project("dvc", "repro")
    assert (project.root / "out").read_text() == "new"


def test_a_stage_that_is_ending_by_itself_is_not_interrupted_again(waiting: Callable[..., Project]) -> None:
    project = waiting()
    process = project.start("dvc", "repro")
    wait_until((project.root / ".out.partial").exists)
    os.killpg(process.pid, signal.SIGTERM)  # as a sweep does
    assert process.communicate()[0].splitlines()[-1] == "interrupted"
    assert (project.root / "closed").exists()
    assert not list(project.root.glob("*out*"))


def test_a_stage_that_has_not_noticed_puts_nothing_in_place(waiting: Callable[..., Project]) -> None:
    project = waiting(look=60.0)
    process = project.start("dvc", "repro")
    wait_until((project.root / ".out.partial").exists)
    process.kill()
    process.wait()
    (project.root / "out").write_text("of another")
    (project.root / "go").touch()
    assert "error: the DVC that ran this has ended (DVC_STAGE=waits is set)" in process.communicate()[0]
    assert (project.root / "out").read_text() == "of another"
    assert not (project.root / ".out.partial").exists()


def test_a_stage_whose_dvc_ends_before_it_has_started_does_nothing(waiting: Callable[..., Project]) -> None:
    project = waiting(before="touch begun; sleep 1; ")
    process = project.start("dvc", "repro")
    wait_until((project.root / "begun").exists)
    process.kill()
    process.wait()
    assert "error: the DVC that ran this has ended" in process.communicate()[0]
    assert not list(project.root.glob("*out*"))


LIBRARY = ["python", "-c", "from dvc.repo import Repo; Repo().reproduce()"]


@pytest.mark.parametrize(
    "command",
    [["python", "-m", "stages.waits", "go", "0.1"], ["dvc", "exp", "run"], ["dvc", "exp", "run", "--temp"], LIBRARY],
)
def test_a_stage_runs_as_long_as_it_takes(waiting: Callable[..., Project], command: list[str]) -> None:
    project = waiting()
    process = project.start(*command)
    wait_until(lambda: list(project.root.rglob(".out.partial")))
    time.sleep(0.5)
    assert process.poll() is None
    (project.root / "go").touch()
    assert process.wait(timeout=60) == 0, process.communicate()[0]
    if command[:2] == ["dvc", "exp"]:
        name = project("dvc", "exp", "list", "--name-only").split()[0]
        project("dvc", "exp", "apply", name)
    assert (project.root / "out").read_text() == "new"


@pytest.mark.slow
def test_a_stage_runs_in_dvc_s_queue(waiting: Callable[..., Project]) -> None:
    project = waiting()
    (project.root / "go").touch()
    project("dvc", "exp", "run", "--queue", "--name", "queued")
    project("dvc", "queue", "start")
    wait_until(lambda: "queued" in project("dvc", "exp", "list", "--name-only"))
    project("dvc", "exp", "apply", "queued")
    assert (project.root / "out").read_text() == "new"

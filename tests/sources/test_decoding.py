"""Decoding by several processes, whatever ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from stages.base.errors import InputError
from stages.base.processes import STOPPING, cores
from stages.sources import decoding
from stages.sources.images import Picture
from stages.sources.pixels import new_array
from stages.sources.rejections import Kind, Rejection, UnusableError
from tests.conftest import ROOT, clean_environment, wait_until


def numbered(row: int) -> Picture:
    if row % 10 == 3:
        raise UnusableError(Kind.DAMAGED, "a three")
    return Picture(np.full((2, 2), row % 251, np.uint8), has_colour=False, largest=row % 7)


def in_company(folder: Path, n_processes: int, row: int) -> Picture:
    """Wait until as many processes have begun."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < n_processes and time.monotonic() < deadline:
        time.sleep(0.01)
    return numbered(row)


def without_memory(row: int) -> Picture:
    if row == 2500:
        raise InputError("a.png: there is too little memory to decode it")
    return numbered(row)


def deadly(number: int, row: int) -> Picture:
    if row == 2500:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return numbered(row)


@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_every_row_has_its_place_digest_and_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_processes: int
) -> None:
    monkeypatch.setattr(decoding, "cores", lambda: n_processes)
    array = new_array(tmp_path / "a.npy", (5000, 2, 2))
    rows = np.arange(1, 5000, 2)
    (tmp_path / "processes").mkdir()
    read = partial(in_company, tmp_path / "processes", n_processes)
    facts, rejections = decoding.decode(array, read, rows, 100)
    assert len(list((tmp_path / "processes").iterdir())) == n_processes
    assert rejections == dict.fromkeys(range(3, 5000, 10), Rejection(Kind.DAMAGED, "a three"))
    assert (array[:, 0, 0] == [row % 251 if row % 2 and row % 10 != 3 else 0 for row in range(5000)]).all()
    # Those of the unusable are of zeros, which row 251 is made of, too.
    same = (facts["digest"] == facts["digest"][rows == 251]).all(axis=1)
    assert rows[same].tolist() == [row for row in rows if not array[row].any()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGTERM])
def test_a_killed_process_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    before = set(psutil.Process().children())  # of earlier tests, such as the server that stages start from
    array = new_array(tmp_path / "a.npy", (5000, 2, 2))
    message = "^one of the processes that decode images was killed, perhaps because memory or the disk is full$"
    with pytest.raises(InputError, match=message):
        decoding.decode(array, partial(deadly, number), np.arange(5000), 100)
    assert set(psutil.Process().children()) <= before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("n_processes", [1, 2])
def test_full_memory_ends_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_processes: int) -> None:
    monkeypatch.setattr(decoding, "cores", lambda: n_processes)
    before = set(psutil.Process().children())  # of earlier tests, such as the server that stages start from
    array = new_array(tmp_path / "a.npy", (5000, 2, 2))
    with pytest.raises(InputError, match="too little memory"):
        decoding.decode(array, without_memory, np.arange(5000), 100)
    assert set(psutil.Process().children()) <= before


def test_few_large_images_are_shared_out() -> None:
    assert [decoding.chunk_size(count) for count in (1, 60, 320, 70_000)] == [1, 1, 6, 64]


@pytest.fixture
def busy(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A stage that takes minutes to decode 3,000 rows, half a second after it has begun."""
    code = f"""
import time, sys
import numpy as np
from pathlib import Path
from stages.base import cli
from stages.sources import decoding
from stages.base.files import replacing
from stages.sources.images import Picture
from stages.sources.pixels import new_array

def slow(row):
    time.sleep(0.05)
    return Picture(np.zeros((2, 2), np.uint8), False, 0)

def main():
    with replacing(Path({str(tmp_path)!r}) / "out") as partial:
        partial.mkdir()
        array = new_array(partial / "a.npy", (3000, 2, 2))
        print("begun", flush=True)
        decoding.decode(array, slow, np.arange(3000), 100)

if __name__ == "__main__":
    cli.run(main)
"""
    (tmp_path / "stage.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "stage.py"],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    wait_until(lambda: len(psutil.Process(process.pid).children()) >= 2 or cores() == 1)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_an_interrupted_stage_leaves_nothing(
    busy: "subprocess.Popen[str]", tmp_path: Path, number: signal.Signals, seconds: float
) -> None:
    children = psutil.Process(busy.pid).children()
    time.sleep(seconds)
    os.killpg(busy.pid, number)  # all of them, as Ctrl-C in a terminal does
    _, errors = busy.communicate(timeout=10)
    assert (busy.returncode, errors) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["stage.py"]
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_no_process_outlives_a_killed_stage(busy: "subprocess.Popen[str]") -> None:
    children = psutil.Process(busy.pid).children()
    os.kill(busy.pid, signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=30)[1] == []

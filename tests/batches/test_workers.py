"""Loader workers: real processes, ended with the training in whatever way that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from stages.base.errors import InputError
from stages.batches.loader import Loader
from tests.batches.test_prepared import split_of
from tests.conftest import ROOT, Project, clean_environment


def children(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def test_workers_end_with_the_loader() -> None:
    me, before = psutil.Process(), set(psutil.Process().children())
    loader = Loader(split_of(9), 4, 0, workers=2)
    for epoch in (1, 2):
        list(loader.epoch(epoch))
        workers = set(me.children()) - before
        assert len(workers) == 2
    del loader
    psutil.wait_procs(list(workers), timeout=10)
    assert not any(worker.is_running() for worker in workers)


def test_workers_end_where_the_training_is_killed(tmp_path: Path) -> None:
    code = """
import os, signal, psutil
from tests.batches.test_prepared import Loader, split_of
loader = Loader(split_of(9), 4, 0, workers=3)
list(loader.epoch(1))
print(*[child.pid for child in psutil.Process().children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    output = tmp_path / "output"
    with output.open("w") as file:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), stdout=file, check=False)
    workers = [int(pid) for pid in output.read_text().split()]
    assert len(workers) == 3
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_that_dies_is_an_error() -> None:
    def die(*_: object) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    started = time.monotonic()
    with pytest.raises(InputError, match=r"train\.workers: one of the 1 processes that load images was killed"):
        list(Loader(split_of(9), 4, 0, die, workers=1).epoch(1))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_leaves_no_worker_and_no_traceback(project: Project, digits: Path, number: int) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 100000 ")
    project.edit("params.yaml", "  workers: 0 ", "  workers: 2 ")
    process = project.start("python", "-m", "stages.train", str(digits), "data/weights", "net.safetensors", "train.csv")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/100000: train loss")
    workers = children(psutil.Process(process.pid))
    assert len(workers) == 2
    os.killpg(process.pid, number)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "interrupted"
    assert "Traceback" not in output
    assert "Error" not in output
    assert not any(worker.is_running() for worker in workers)
    assert not list(project.root.glob("*.safetensors*"))

"""The loader: which batches there are, and workers, real processes, ended with the training however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.processes import STOPPING
from stages.batches.loader import Loader
from stages.batches.prepared import Split
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, Project, clean_environment, params_with, wait_until


def split_of(n: int) -> Split:
    """n images of 2x2 whose pixels all are the image's number, as its label is, at even rows of the array."""
    images = np.repeat(np.arange(2 * n, dtype=np.uint8) // 2, 4).reshape(2 * n, 2, 2)
    return Split(images, labels=torch.arange(n), rows=2 * torch.arange(n))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_image_once_and_its_label_with_it(workers: int) -> None:
    loader = Loader(split_of(10), batch_size=4, seed=0, workers=workers)
    batches = list(loader.epoch(1))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(loader) == 3
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(10))
    assert torch.equal(torch.cat([images for images, _ in batches])[:, 0, 0].long(), labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_from_seed_and_epoch_alone(workers: int) -> None:
    loaders = [Loader(split_of(50), 8, seed, workers=workers) for seed in range(3)]

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(epoch)  # the global generator plays no part
        return torch.cat([labels for _, labels in loaders[seed].epoch(epoch)]).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) == torch.randperm(50, generator=torch.Generator().manual_seed(1_000_003 + 2)).tolist()
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loading_draws_nothing_from_the_global_generator(workers: int) -> None:
    before = torch.get_rng_state()
    list(Loader(split_of(9), 4, 0, noise, workers).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def noise(images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return images + torch.tensor(seeds)[:, None, None] % 100, labels


def test_each_place_has_a_seed_that_follows_from_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int, workers: int) -> list[int]:
        return torch.cat([images for images, _ in Loader(split_of(20), 8, seed, noise, workers).epoch(epoch)]).tolist()

    assert drawn(0, 1, 0) == drawn(0, 1, 1) == drawn(0, 1, 2)
    assert len({str(drawn(seed, epoch, 0)) for seed, epoch in ((0, 1), (0, 2), (1, 1))}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_early_leaves_nothing_behind(workers: int) -> None:
    loader = Loader(split_of(40), 4, 0, workers=workers)
    next(loader.epoch(1))
    whole = torch.cat([labels for _, labels in loader.epoch(2)]).tolist()
    assert whole == torch.cat([labels for _, labels in Loader(split_of(40), 4, 0).epoch(2)]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_transforms_refuse_is_said_without_a_traceback(workers: int) -> None:
    def refuse(*_: object) -> tuple[Tensor, Tensor]:
        raise InputError("train.transforms.train: no")

    with pytest.raises(InputError, match=r"^train\.transforms\.train: no$"):
        list(Loader(split_of(9), 4, 0, refuse, workers).epoch(1))


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
from tests.batches.test_loader import Loader, split_of
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
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers), seconds=10)


def test_a_worker_that_dies_is_an_error() -> None:
    def die(*_: object) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    started = time.monotonic()
    with pytest.raises(InputError, match=r"train\.workers: one of the 1 processes that load images was killed"):
        list(Loader(split_of(9), 4, 0, die, workers=1).epoch(1))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("number", STOPPING)
def test_a_stopped_training_leaves_no_worker_and_no_traceback(project: Project, digits: Path, number: int) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 100000 ")
    project.edit("params.yaml", "  workers: 0 ", "  workers: 2 ")
    process = project.start("python", "-m", "stages.train", str(digits), "net.safetensors", "train.csv")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/100000: train loss")
    [follower] = [child for child in children(psutil.Process(process.pid)) if "tracking.deliver" in child.cmdline()]
    workers = [child for child in children(psutil.Process(process.pid)) if child != follower]
    assert len(workers) == 2
    os.killpg(process.pid, number)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "interrupted"
    assert "Traceback" not in output
    assert "Error" not in output
    assert not any(each.is_running() for each in (*workers, follower))
    assert not list(project.root.glob("*.safetensors*"))


RICH: dict[str, Any] = {
    "train.epochs": 2,
    "train.net.arguments.Net.hidden": [20],
    "train.net.arguments.Net.dropout": 0.5,
    "train.transforms.train": [
        {"RandomAffine": {"degrees": 15, "interpolation": "bilinear"}},
        {"ElasticTransform": {"alpha": 5.0, "sigma": 1.0}},
        {"RandomCrop": {"size": 8, "padding": 1}},
        {"GaussianBlur": {"kernel_size": 3}},
        "RandAugment",
        {"RandomErasing": {"value": "random"}},
        "MixUp",
    ],
}


def test_workers_change_no_bit_of_the_weights(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for workers, start in ((0, "fork"), (1, "fork"), (2, "fork"), (4, "fork"), (2, "spawn")):
        monkeypatch.setattr("stages.base.workers.START", start)
        folder = tmp_path / f"{workers} {start}"
        params = params_with(RICH | {"train.workers": workers}).train
        train(params, digits, folder / "net.safetensors", folder / "train.csv", Tracker.off())
        made.append(((folder / "net.safetensors").read_bytes(), (folder / "train.csv").read_bytes()))
    assert made == made[:1] * 5
    other = tmp_path / "other"
    train(
        params_with(RICH | {"train.seed": 1}).train,
        digits,
        other / "net",
        other / "train.csv",
        Tracker.off(),
    )
    assert (other / "train.csv").read_bytes() != made[0][1]

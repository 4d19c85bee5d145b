"""The training's step, made for speed, against the plain formula: a hundred steps have the same losses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.batches.prepared import Prepared
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from stages.training import metrics
from tests.conftest import keep_training, params_with

BATCH, STEPS, LR = 64, 100, 0.001


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST, with as many of the training images as the steps take."""
    folder = tmp_path_factory.mktemp("fashion") / "prepared"
    prepare(params_with({"prepare.source": "fashion_mnist"}).prepare, folder)
    keep_training(folder, BATCH * STEPS)
    return folder


def plain(x: Tensor, weights: Mapping[str, Tensor], dropout: float) -> Tensor:
    """Return what the last linear layer gives for images, float (n, 1, 28, 28), in the order that the page has."""
    for name in sorted({name.split(".")[0] for name in weights if "conv" in name}):
        x = F.max_pool2d(F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])), 2, 2)
    x = x.contiguous().view(x.size(0), -1)
    first, *others = sorted({name.split(".")[0] for name in weights if "fc" in name})
    x = F.linear(x, weights[f"{first}.weight"], weights[f"{first}.bias"])
    for name in others:
        x = F.linear(F.dropout(F.relu(x), dropout), weights[f"{name}.weight"], weights[f"{name}.bias"])
    return x


# Of each net what params.yaml says, its layers as torch makes them, and the share of hidden units that is dropped.
NETS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, nn.Module]], float]] = {
    "Net": ({}, lambda: {"conv1": nn.Conv2d(1, 32, 5), "fc1": nn.Linear(4608, 10)}, 0.0),
    "three": (
        {"train.net.arguments.Net.widths": [8, 16, 32], "train.net.arguments.Net.kernel": 3},
        lambda: {
            "conv1": nn.Conv2d(1, 8, 3),
            "conv2": nn.Conv2d(8, 16, 3),
            "conv3": nn.Conv2d(16, 32, 3),
            "fc1": nn.Linear(32, 10),
        },
        0.0,
    ),
    "course_1": (
        {"train.net.name": "course_1"},
        lambda: {"conv1": nn.Conv2d(1, 10, 3), "conv2": nn.Conv2d(10, 20, 3), "fc1": nn.Linear(500, 10)},
        0.0,
    ),
    "course_2": (
        {"train.net.name": "course_2"},
        lambda: {
            "conv1": nn.Conv2d(1, 10, 3),
            "conv2": nn.Conv2d(10, 20, 3),
            "fc1": nn.Linear(500, 50),
            "fc2": nn.Linear(50, 10),
        },
        0.4,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_losses_of_a_hundred_steps(
    name: str, fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, layers, dropout = NETS[name]
    found: list[float] = []
    step = metrics.step

    def noted(batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> metrics.Step:
        found.append(batches[0][0].item())
        return step(batches)

    monkeypatch.setattr(metrics, "step", noted)
    always: dict[str, Any] = {"train.epochs": 1, "train.batch_size": BATCH, "train.schedule.name": "ConstantLR"}
    always |= {"train.optimizer.lr": LR}  # at a larger one the roundings of two orders of summation grow apart
    params = params_with(always | changes).train
    train(params, fashion, tmp_path / "net.safetensors", tmp_path / "train.csv", Tracker.off())

    data = Prepared(fashion)
    split = data.split("train", torch.device("cpu"))
    images = (split.read(slice(None)).float().unsqueeze(1) / 255 - data.mean[0]) / data.std[0]
    torch.manual_seed(0)
    weights = {f"{name}.{key}": value for name, layer in layers().items() for key, value in layer.named_parameters()}
    if name in ("Net", "three"):
        nn.init.constant_(weights["fc1.bias"], 1.0)
    optimizer = torch.optim.SGD(weights.values(), lr=LR, momentum=0.9)
    expected = []
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).split(BATCH):
        scores = plain(images[rows], weights, dropout)
        loss = F.cross_entropy(F.relu(scores) if name in ("Net", "three") else scores, split.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=1e-4)
    assert sum(expected[-10:]) < 0.99 * sum(expected[:10]), "it learns"

"""Several processes that train one net: with any number of them it is the one that a single process trains."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from stages.base.errors import InputError
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import check_params, train
from stages.training.launcher import is_member
from stages.training.losses import LOSSES
from stages.training.parallel import Group, with_common_norms
from tests.conftest import ROOT, clean_environment, keep_training, params_with

LAST_OF_ONE = 1293  # images a batch of which the digits' 1,294 leave one

# What the result of several processes has to agree in: all that makes a step.
TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "uneven": {"train.batch_size": 61},
    "one image alone": {"train.batch_size": LAST_OF_ONE, "train.optimizer.lr": 0.3},
    "accumulate": {"train.batch_size": 25, "train.accumulate": 3},
    "adam": {"train.optimizer.name": "Adam", "train.clip_norm": 0.5},
    # Of all images at once: from one batch to the next it amplifies each rounding, in float64, too.
    "lbfgs": {
        "train.optimizer.name": "LBFGS",
        "train.optimizer.arguments": {"LBFGS": {"max_iter": 5}},
        "train.batch_size": LAST_OF_ONE + 1,
    },
    "ema": {"train.ema_decay": 0.9},
    "bfloat16": {"train.precision": "bfloat16"},
    "balance by loss": {"train.balance": "loss"},
    "balance by sampling": {"train.balance": "sampling"},
    "freeze": {"train.freeze": 1},
    "head": {"train.freeze": "all_but_head"},
    "transforms": {"train.transforms.train": [{"RandomCrop": {"size": 8, "padding": 1}}]},
    "mixed": {"train.transforms.train": ["MixUp"], "train.batch_size": LAST_OF_ONE, "train.workers": 1},
    "overfit": {"train.overfit": 16},
    "stops early": {"train.early_stopping": 1, "train.optimizer.lr": 1e-9, "train.monitor": "macro_f1"},
    "plateau": {"train.schedule.name": "ReduceLROnPlateau", "train.calibrate": True},
}
TRAININGS |= {name: {"train.loss.name": name, "train.epochs": 1, "train.optimizer.lr": 1e-3} for name in LOSSES}
ROUGH = {"bfloat16": 0.05}  # relative
DROPOUT = "dropout"


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """What trains all of these in so many processes, once, and returns the folder of what came of it."""
    folder = tmp_path_factory.mktemp("trainings")
    dropout = {"train.net.arguments.Net.hidden": [20], "train.net.arguments.Net.dropout": 0.5}
    all_of_them = {**TRAININGS, DROPOUT: dropout, f"{DROPOUT} again": dropout, "again": {}}
    write_trainings(folder / "trainings.json", digits, all_of_them)

    def train(processes: int) -> Path:
        if not (folder / str(processes)).exists():
            run(folder / "trainings.json", processes)
        return folder / str(processes)

    return train


def write_trainings(file: Path, prepared: Path, trainings: dict[str, dict[str, Any]], exact: bool = False) -> None:
    always: dict[str, Any] = {"train.epochs": 2, "train.threads": 1}
    params = {name: params_with(always | changes).train for name, changes in trainings.items()}
    content = {
        name: {"params": json.loads(given.model_dump_json()), "prepared": str(prepared), "exact": exact}
        for name, given in params.items()
    }
    file.write_text(json.dumps(content))


def run(file: Path, processes: int) -> None:
    command = [sys.executable, "-m", "tests.training.members", str(file), str(processes)]
    environment = clean_environment() | {"REPRONET_HOME": str(file.parent / f"home{processes}")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def difference(one: Path, other: Path) -> float:
    """How far two weights files are from each other, relative to the size of each tensor."""
    first, second = load_file(one / "net.safetensors"), load_file(other / "net.safetensors")
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", TRAININGS)
def test_it_is_what_one_process_trains(name: str, processes: int, trained: Callable[[int], Path]) -> None:
    alone, together = trained(1) / name, trained(processes) / name
    assert difference(alone, together) < ROUGH.get(name, 2e-5)
    one, other = pd.read_csv(alone / "train.csv"), pd.read_csv(together / "train.csv")
    pd.testing.assert_frame_equal(one, other, rtol=ROUGH.get(name, 1e-4))


def test_equal_numbers_of_processes_give_equal_bits(trained: Callable[[int], Path]) -> None:
    for one, other in (("default", "again"), (DROPOUT, f"{DROPOUT} again")):
        for file in ("net.safetensors", "train.csv"):
            assert (trained(2) / one / file).read_bytes() == (trained(2) / other / file).read_bytes()
    assert difference(trained(2) / DROPOUT, trained(3) / DROPOUT) > 0.01, "each process draws its own"


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion") / "prepared"
    prepare(params_with({"prepare.source": "fashion_mnist"}).prepare, folder)
    return folder


@pytest.mark.parametrize(
    ("images", "is_exact", "most"),
    [
        pytest.param(20 * 128, False, 1e-5, id="20 steps in float32", marks=pytest.mark.slow),
        pytest.param(54_000, True, 1e-9, id="an epoch in float64", marks=pytest.mark.torture),
    ],
)
def test_fashion_mnist(images: int, is_exact: bool, most: float, fashion: Path, tmp_path: Path) -> None:
    """In float64 roundings do not grow over steps."""
    prepared = shutil.copytree(fashion, tmp_path / "prepared")
    keep_training(prepared, images)
    write_trainings(
        tmp_path / "trainings.json", prepared, {"one": {"train.batch_size": 128, "train.epochs": 1}}, is_exact
    )
    for processes in (1, 2, 4):
        run(tmp_path / "trainings.json", processes)
        assert difference(tmp_path / "1/one", tmp_path / str(processes) / "one") < most
    first = (tmp_path / "4/one/net.safetensors").read_bytes()
    run(tmp_path / "trainings.json", 4)
    assert (tmp_path / "4/one/net.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 3}, "train.batch_size: 3, should be train.processes: 4 or more"),
        (
            {"train.loss.arguments": {"CrossEntropyLoss": {"weight": [1.0] * 10}}},
            "train.loss.arguments.CrossEntropyLoss.weight: .* makes the loss a mean over another number",
        ),
    ],
)
def test_what_would_be_another_result_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_params(params_with({"train.processes": 4} | changes).train, 1, torch.device("cpu"))


def test_batch_norms_have_the_statistics_of_a_batch_or_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    params = params_with({"train.processes": 2}).train
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(InputError, match=r"batch norms, which torch computes over several processes on GPUs alone"):
        with_common_norms(net, params, cpu, 64)
    with pytest.raises(InputError, match="on GPUs alone"):
        with_common_norms(nn.BatchNorm1d(2), params, cpu, 64)
    with pytest.raises(InputError, match="for which each process needs an image, and an epoch has a batch of 1"):
        with_common_norms(net, params, gpu, 1)

    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match="batch norms of the class Own, which torch would replace by its own"):
        with_common_norms(Own(2), params, gpu, 64)
    of_timm = params_with({"train.processes": 2, "train.net.name": "timm/efficientnet_b0"}).train
    activated = with_common_norms(BatchNormAct2d(2), of_timm, gpu, 64)
    assert isinstance(activated, nn.SyncBatchNorm)
    assert isinstance(activated.act, nn.ReLU), "it is not lost"
    assert isinstance(with_common_norms(net, params, gpu, 64)[1], nn.SyncBatchNorm)  # type: ignore[index]
    frozen = params_with({"train.processes": 2, "train.freeze": "all_but_head"}).train
    assert with_common_norms(net, frozen, cpu, 64) is net


def test_few_images_of_validation_are_computed_by_each_process() -> None:
    scores = torch.rand(3, 10)
    assert not Group(rank=1, size=4).divides(3)
    assert Group(rank=1, size=4).gathered(scores, 3) is scores
    assert Group(rank=1, size=3).divides(3)


def test_as_many_processes_as_params_say(digits: Path, tmp_path: Path) -> None:
    params = params_with({"train.processes": 2}).train
    with pytest.raises(InputError, match=r"train\.processes: 2, but this is a training of 1"):
        train(params, digits, tmp_path / "net.safetensors", tmp_path / "train.csv", Tracker.off())
    started = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    assert not is_member(started, 1), "some clusters set these everywhere"
    assert is_member(started, 2)
    assert not is_member({}, 2)

"""Trainings that are interrupted: they go on where they were, and end with the same bytes."""

import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.base.locks import locked
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from stages.training import checkpoints
from stages.training.checkpoints import CODE, Checkpoint
from stages.training.optimizers import OPTIMIZERS
from stages.training.schedules import SCHEDULES
from tests.conftest import ROOT, YAML_READER, params_with, runs

EPOCHS = 3  # of 20 batches


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of checkpoints, which are written after every batch and epoch."""
    monkeypatch.setenv("REPRONET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checkpoints, "SECONDS", -1.0)
    return tmp_path / "home/checkpoints"


def trained(digits: Path, folder: Path, changes: dict[str, Any]) -> dict[str, bytes]:
    """Train, and return what is written."""
    given = {"train.epochs": EPOCHS, "train.checkpoint_minutes": 1e-9} | changes
    train(params_with(given).train, digits, folder / "net.safetensors", folder / "train.csv", Tracker.off())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Interrupting = Callable[[Path, Path, dict[str, Any], int], None]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Interrupting:
    """What trains until so many checkpoints have been written, and is interrupted then."""

    def train_until(digits: Path, folder: Path, changes: dict[str, Any], number: int) -> None:
        written = 0
        write = Checkpoint._write

        def counted(*arguments: Any) -> None:
            nonlocal written
            write(*arguments)
            written += 1
            if written == number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "_write", counted)
            with pytest.raises(KeyboardInterrupt):
                trained(digits, folder, changes)
        assert list(folder.iterdir()) == []

    return train_until


CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"train.optimizer.name": name} for name in OPTIMIZERS},
    **{name: {"train.schedule.name": name} for name in SCHEDULES},
    "dropout": {"train.net.arguments.Net.hidden": [20], "train.net.arguments.Net.dropout": 0.5},
    "average": {"train.ema_decay": 0.9},
    "average of batch norms": {"train.ema_decay": 0.9, "train.net.name": "mnasnet0_5", "train.epochs": 1},
    "transforms": {"train.transforms.train": [{"RandomAffine": {"degrees": 9}}, "MixUp"]},
    "workers": {"train.transforms.train": ["RandomHorizontalFlip"], "train.workers": 2},
    "early stopping": {"train.early_stopping": 1},
    "accumulated": {"train.accumulate": 2, "train.epochs": 6},
    "freezing and warm-up": {
        "train.freeze": 1,
        "train.warmup_epochs": 2,
        "train.schedule.name": "CosineAnnealingLR",
        "train.optimizer.name": "AdamW",
        "train.optimizer.layer_decay": 0.5,
        "train.optimizer.decay_on": "weights",
    },
    "bfloat16": {"train.precision": "bfloat16"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("mnasnet" in str(CHOICES[name]))) for name in CHOICES]
)
def test_an_interrupted_training_ends_with_the_same_bytes(
    name: str, digits: Path, tmp_path: Path, interrupted: Interrupting, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(digits, tmp_path / "whole", CHOICES[name])
    # Within the first epoch, from there to the end of one, and from there into the last.
    places = [7] if CHOICES[name].get("train.epochs") == 1 else [7, 14, 30]
    for number in places:
        interrupted(digits, tmp_path / "killed", CHOICES[name], number)
        torch.rand(3)
    capsys.readouterr()
    assert trained(digits, tmp_path / "killed", CHOICES[name]) == expected
    assert "goes on after epoch " in capsys.readouterr().out
    assert list(home.iterdir()) == []


def test_a_run_says_that_another_process_went_on_within_the_first_epoch(
    digits: Path, tmp_path: Path, interrupted: Interrupting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = {"train.epochs": EPOCHS, "train.checkpoint_minutes": 1e-9}
    interrupted(digits, tmp_path / "killed", {}, 3)
    params, folder = params_with(changes), tmp_path / "killed"
    tracker = Tracker.from_environment(params, {"DVC_ROOT": str(tmp_path)})
    train(params.train, digits, folder / "net.safetensors", folder / "train.csv", tracker)
    [run] = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.data.tags["resumed.epoch"] == "0"


def test_an_interrupted_training_on_shards(tmp_path: Path, interrupted: Interrupting) -> None:
    prepare(params_with({"prepare.shard_mb": 0.004}).prepare, tmp_path / "prepared")
    expected = trained(tmp_path / "prepared", tmp_path / "whole", {})
    for number in (7, 30):
        interrupted(tmp_path / "prepared", tmp_path / "killed", {}, number)
    assert trained(tmp_path / "prepared", tmp_path / "killed", {}) == expected


def test_an_interrupted_training_on_streamed_shards(tmp_path: Path, interrupted: Interrupting) -> None:
    to, changes = str(tmp_path / "storage"), {"train.workers": 2}
    prepare(params_with({"prepare.shard_mb": 0.004, "prepare.shards_to": to}).prepare, tmp_path / "prepared")
    expected = trained(tmp_path / "prepared", tmp_path / "whole", changes)
    # Within an epoch, and after its last batch, where nothing is left for the workers before validation.
    for number in (7, 13):
        interrupted(tmp_path / "prepared", tmp_path / "killed", changes, number)
    shutil.rmtree(tmp_path / "home/shards")
    fetched: list[int] = []  # at each fork
    os.register_at_fork(before=lambda: fetched.append(len(list((tmp_path / "home/shards").glob("*.npy")))))
    assert trained(tmp_path / "prepared", tmp_path / "killed", changes) == expected
    assert fetched == [0, 0], "the forks come before the threads that fetch"


def test_the_end_of_a_training_is_a_place_to_go_on_from(
    digits: Path, tmp_path: Path, interrupted: Interrupting, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(digits, tmp_path / "whole", {})
    interrupted(digits, tmp_path / "killed", {}, 21 * EPOCHS)
    assert trained(digits, tmp_path / "killed", {}) == expected
    assert f"goes on after epoch {EPOCHS}, where" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version\\": 1', b'"version\\": 0'))


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Attack()))


def saved_by_torch(path: Path) -> None:
    torch.save({"state": Attack()}, path)


@pytest.mark.parametrize("damage", [cut, changed, another_version, pickled, saved_by_torch])
def test_a_checkpoint_that_is_not_as_it_was_written_is_not_used(
    damage: Callable[[Path], None],
    digits: Path,
    tmp_path: Path,
    interrupted: Interrupting,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = trained(digits, tmp_path / "whole", {})
    interrupted(digits, tmp_path / "killed", {}, 30)
    [file] = home.glob("*.safetensors")
    before = file.read_bytes()
    damage(file)
    assert file.read_bytes() != before
    assert trained(digits, tmp_path / "killed", {}) == expected
    assert "is not used: " in capsys.readouterr().err
    assert not Path("ran").exists()


def test_another_training_is_not_gone_on_with(
    digits: Path, tmp_path: Path, interrupted: Interrupting, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"train.seed": 1, "train.net.arguments.Net.kernel": 3}
    expected = trained(digits, tmp_path / "whole", other)
    interrupted(digits, tmp_path / "killed", {}, 30)
    capsys.readouterr()
    assert trained(digits, tmp_path / "killed", other) == expected
    said = f"not going on with the interrupted training of {tmp_path}/killed/net.safetensors: different now: "
    assert f"{said}params.net.arguments.Net.kernel, params.seed\n" in capsys.readouterr().out
    for file in home.iterdir():  # its params may come back, but not after 30 days
        os.utime(file, (0, time.time() - 31 * 86_400))
    (home / "half.partial").touch()
    os.utime(home / "half.partial", (0, 0))
    trained(digits, tmp_path / "killed", other)
    assert list(home.iterdir()) == []


def test_the_origin_is_all_that_determines_the_result(tmp_path: Path) -> None:
    deps = YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    assert [f"stages/{name}" for name in CODE] == [dep for dep in deps if dep.startswith("stages/")]
    for name in ("dataset.json", "manifest.csv"):
        (tmp_path / name).touch()
    cpu = torch.device("cpu")
    first = checkpoints.origin(params_with({}).train, tmp_path, cpu)
    assert first["cpu"] == ""
    assert {"stages/train.py", "stages/nets/net.py", "stages/base/yaml.py"} <= first["code"].keys()
    same = {"train.workers": 2, "train.checkpoint_minutes": 1, "train.log_steps": 1, "train.log_system": 2.5}
    assert checkpoints.origin(params_with(same).train, tmp_path, cpu) == first
    machine = checkpoints.origin(params_with({"train.determinism": "machine"}).train, tmp_path, cpu)
    assert machine["cpu"]
    (tmp_path / "manifest.csv").write_text("another")
    assert checkpoints.origin(params_with({}).train, tmp_path, cpu)["data"] != first["data"]


def test_the_same_training_in_two_processes(
    digits: Path, tmp_path: Path, interrupted: Interrupting, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(digits, tmp_path / "whole", {})
    interrupted(digits, tmp_path / "killed", {}, 30)
    [file] = home.glob("*.safetensors")
    with locked(file):
        assert trained(digits, tmp_path / "killed", {}) == expected
    printed = capsys.readouterr().out
    assert "the same training is going on in another process, so this one keeps no checkpoint\n" in printed
    assert "goes on after" not in printed
    assert list(home.glob("*.safetensors")) == [file], "it is the other's"


def test_a_disk_that_is_full_costs_the_checkpoint(
    digits: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(digits, tmp_path / "whole", {})
    home.rmdir()
    home.write_text("no folder")
    assert trained(digits, tmp_path / "other", {}) == expected
    assert capsys.readouterr().err.count("warning: no checkpoint can be kept of this training: File exists") == 1

"""What the tests of tracking share: the stages as their main functions run them, and a store with one run."""

from pathlib import Path
from typing import Any

import pytest

from stages.evaluate import evaluate
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, params_with, runs

SHORT = {"train.epochs": 2}


def run_stages(
    digits: Path, folder: Path, environment: dict[str, str], changes: dict[str, Any], only: str = ""
) -> None:
    """Train and evaluate, or one of them, as the stages' main functions do."""
    params = params_with(SHORT | changes)
    if "DVC_ROOT" not in environment:
        environment = environment | {"REPRONET_HOME": str(folder / "home")}  # not this project's own
    weights, history = folder / "net.safetensors", folder / "train.csv"
    if only != "evaluate":
        train(params.train, digits, weights, history, Tracker.from_environment(params, environment))
    if only != "train":
        tracker = Tracker.from_environment(params, environment)
        evaluate(params, weights, digits, history, folder / "evaluate.json", folder / "plots", tracker)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run where dvc.yaml is."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def store(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one training and evaluation, and the store that they were logged to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("store")
        run_stages(digits, folder, {"DVC_ROOT": str(folder), "DVC_EXP_NAME": "brave-newt"}, {})
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of the results in `folder`, which DVC keeps, by name."""
    plots = [path for path in (folder / "plots").rglob("*") if path.is_file()]
    files = [*(folder / name for name in ("net.safetensors", "train.csv", "evaluate.json")), *plots]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def only_run(folder: Path) -> Any:
    [run] = runs(f"sqlite:///{folder}/mlflow.db")
    return run

"""MLflow runs in real stores: what one holds, and which one an evaluation completes."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.artifacts import load_text

from stages.base.errors import InputError
from stages.batches.prepared import DatasetInfo
from stages.nets.weights import load_weights
from stages.prepare import prepare
from stages.tracking.params import given
from stages.tracking.tracker import Tracker
from tests.conftest import ROOT, params_with, runs, write_image
from tests.tracking.conftest import SHORT, only_run, run_stages


def test_one_training_is_one_finished_run_named_as_dvc_s_experiment(store: Path) -> None:
    run = only_run(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "brave-newt")
    assert run.data.tags["dvc.exp_name"] == "brave-newt"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["env.torch"] == torch.__version__
    assert run.data.tags["env.threads"] == "2"


def test_params_have_the_keys_of_params_yaml(store: Path) -> None:
    run = only_run(store)
    flat = params_with(SHORT).flat()
    assert given(run) == {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def test_settings_that_were_used_are_logged_with_all_defaults(store: Path) -> None:
    params = only_run(store).data.params
    assert (params["train.optimizer.lr"], params["train.loss.arguments"]) == ("null", "{}")
    expected = {
        "used.optimizer.lr": "0.03",
        "used.optimizer.momentum": "0.9",
        "used.optimizer.nesterov": "false",
        "used.schedule.max_lr": "[0.03]",
        "used.schedule.pct_start": "0.3",
        "used.schedule.anneal_strategy": "cos",
        "used.loss.label_smoothing": "0.0",
        "used.net.output": "relu",
    }
    assert expected.items() <= params.items()
    _, description = load_weights(store / "net.safetensors")
    assert {f"used.{name}": value for name, value in description.used.items()} == {
        name: value for name, value in params.items() if name.startswith("used.")
    }


def test_an_evaluation_finds_the_run_whose_params_mlflow_cut(digits: Path, tmp_path: Path) -> None:
    changes = {"prepare.classes": [f"a class with a long name, {i:03}" for i in range(300)]}
    for only in ("", "evaluate", "evaluate"):
        run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, changes, only)
    run = only_run(tmp_path)
    assert run.data.params["prepare.classes"] == json.dumps(changes["prepare.classes"])[:6000]
    assert "training" not in run.data.tags


def test_metrics_are_those_of_dvc(store: Path) -> None:
    run = only_run(store)
    history = pd.read_csv(store / "train.csv")
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    for name in ("train/lr", "train/loss", "train/accuracy", "valid/loss", "valid/accuracy"):
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert logged == list(zip(history["epoch"], history[name], strict=True))
    values = json.loads((store / "evaluate.json").read_text())
    for name in ("accuracy", "accuracy_untrained", "auroc", "ece", "loss", "macro_f1", "never_predicted"):
        assert run.data.metrics[f"test/{name}"] == values[name]
    assert run.data.metrics["best/valid_accuracy"] == values["valid_accuracy"]
    assert run.data.metrics["seconds/training"] > 0


def test_datasets_have_the_digests_of_their_splits(store: Path, digits: Path) -> None:
    info = json.loads((digits / "dataset.json").read_text())
    inputs = only_run(store).inputs.dataset_inputs
    found = {entry.tags[0].value: (entry.dataset.name, entry.dataset.digest) for entry in inputs}
    assert found == {
        context: (f"digits {split}", info["sha256"][split][:32])
        for context, split in [("training", "train"), ("validation", "valid"), ("testing", "test")]
    }


def test_artifacts(store: Path) -> None:
    run = only_run(store)
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    written = {"dvc.lock", "dvc.yaml", "environment.json", "evaluate.json", "params.yaml", "plots", "weights"}
    assert names - {"git.patch"} == written
    for folder in ("plots", "plots/pictures"):
        logged = {
            file.path: file.file_size for file in client.list_artifacts(run.info.run_id, folder) if not file.is_dir
        }
        assert logged == {
            f"{folder}/{path.name}": path.stat().st_size for path in (store / folder).iterdir() if path.is_file()
        }
    lock = load_text(f"{run.info.artifact_uri}/dvc.lock")
    assert "  train:" in lock
    assert "  evaluate:" not in lock, "DVC has not written that entry while evaluate runs"


def test_the_environment_is_recorded(store: Path) -> None:
    recorded = json.loads(load_text(f"{only_run(store).info.artifact_uri}/environment.json"))
    assert recorded["version"] == 1
    assert recorded["packages"]["torch"] == version("torch")
    assert len(recorded["packages"]) > 100
    assert recorded["python"] == platform.python_version()
    assert recorded["cpu"]["model"]
    assert "avx2" in recorded["cpu"]["flags"]
    assert recorded["variables"]["MKL_CBWR"] == "COMPATIBLE"
    assert recorded["variables"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert recorded["variables"]["GOMP_SPINCOUNT"] == "3000"
    assert recorded["variables"]["OMP_DYNAMIC"] == "FALSE"
    assert (recorded["threads"], recorded["gpu"], recorded["dvc"]) == (2, {}, "")
    assert "python" in recorded["command"]


def test_the_same_evaluation_again_adds_nothing(digits: Path, tmp_path: Path) -> None:
    environment = {"DVC_ROOT": str(tmp_path)}
    run_stages(digits, tmp_path, environment, {})
    before = only_run(tmp_path).to_dictionary()
    run_stages(digits, tmp_path, environment, {}, only="evaluate")
    assert only_run(tmp_path).to_dictionary() == before


def test_the_same_training_again_is_another_run_with_its_evaluation(digits: Path, tmp_path: Path) -> None:
    environment = {"DVC_ROOT": str(tmp_path)}
    for _ in range(2):
        run_stages(digits, tmp_path, environment, {})
    second, first = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert "training" not in second.data.tags
    for name in ("valid/loss", "test/accuracy"):
        assert second.data.metrics[name] == first.data.metrics[name]


def test_another_evaluation_of_the_same_weights_is_another_run(digits: Path, tmp_path: Path) -> None:
    environment = {"DVC_ROOT": str(tmp_path)}
    run_stages(digits, tmp_path, environment, {})
    first = only_run(tmp_path).to_dictionary()
    run_stages(digits, tmp_path, environment, {"evaluate.calibration_bins": 3}, only="evaluate")
    second, again = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert again.to_dictionary() == first
    assert second.info.status == "FINISHED"
    assert second.data.params["evaluate.calibration_bins"] == "3"
    for name in ("train/loss", "valid/accuracy", "test/accuracy", "epoch/best"):
        assert second.data.metrics[name] == again.data.metrics[name]
    assert len(second.outputs.model_outputs) == 1


def test_an_experiment_with_cached_weights_gets_its_own_run(digits: Path, tmp_path: Path) -> None:
    run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path), "DVC_EXP_NAME": "one"}, {})
    run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path), "DVC_EXP_NAME": "two"}, {}, only="evaluate")
    second, first = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert (first.info.run_name, second.info.run_name) == ("one", "two")
    assert second.data.tags["training"] == "not repeated for this run"
    rows = {name: value for name, value in first.data.metrics.items() if name != "seconds/training"}
    assert second.data.metrics == rows


def test_equal_trainings_at_the_same_time_are_told_apart_by_directory(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clone").mkdir()
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        (tmp_path / "clone" / name).write_bytes((ROOT / name).read_bytes())
    environment = {"DVC_ROOT": str(tmp_path)}
    run_stages(digits, tmp_path, environment, {}, only="train")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "clone")
        run_stages(digits, tmp_path, environment, {}, only="train")
    run_stages(digits, tmp_path, environment, {}, only="evaluate")
    evaluated = {
        run.data.tags["directory"]: "test/accuracy" in run.data.metrics
        for run in runs(f"sqlite:///{tmp_path}/mlflow.db")
    }
    assert evaluated == {str(ROOT): True, str(tmp_path / "clone"): False}


def test_a_training_that_diverges_is_marked_failed(digits: Path, tmp_path: Path) -> None:
    changes = {"train.optimizer.lr": 1e30, "train.net.arguments.Net.output": "logits"}
    with pytest.raises(InputError, match="the loss is nan"):
        run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, changes)
    run = only_run(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"].startswith("the loss is nan at step ")


def test_the_list_of_rejected_images_is_logged(tmp_path: Path) -> None:
    for seed in range(20):
        write_image(tmp_path / "set" / "ab"[seed % 2] / f"{seed}.png", seed)
    (tmp_path / "set/a/notes.txt").touch()
    params = params_with({"prepare.source": "folder", "prepare.path": str(tmp_path / "set"), "prepare.on_bad": "skip"})
    prepare(params.prepare, tmp_path / "prepared")
    tracker = Tracker.from_environment(params, {"DVC_ROOT": str(tmp_path)})
    with tracker.training(DatasetInfo(tmp_path / "prepared"), torch.device("cpu"), {}):
        pass
    logged = load_text(f"{only_run(tmp_path).info.artifact_uri}/rejected.csv")
    assert logged == (tmp_path / "prepared/rejected.csv").read_text()
    assert 'a/notes.txt,a,,"not an image' in logged

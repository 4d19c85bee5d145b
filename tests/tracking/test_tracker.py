"""MLflow runs in real stores: what one holds, which one an evaluation completes, and what a broken store may cost."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.artifacts import load_text

from stages.base.errors import InputError
from stages.batches.prepared import DatasetInfo
from stages.evaluate import evaluate
from stages.prepare import prepare
from stages.tracking import provenance
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import PRETRAINED, ROOT, Project, changed, free_port, runs, served, write_image

SHORT = {"train.epochs": 2}


def run_stages(
    digits: Path, folder: Path, environment: dict[str, str], changes: dict[str, Any], only: str = ""
) -> None:
    """Train and evaluate, or one of them, as the stages' main functions do."""
    params = changed(SHORT | changes)
    weights, history = folder / "net.safetensors", folder / "train.csv"
    if only != "evaluate":
        train(params.train, digits, PRETRAINED, weights, history, Tracker.from_environment(params, environment))
    if only != "train":
        tracker = Tracker.from_environment(params, environment)
        evaluate(params, weights, digits, history, folder / "evaluate.json", folder / "plots", tracker)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run where dvc.yaml is."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def store(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one training and evaluation, and the store that they were logged to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("store")
        run_stages(digits, folder, {"DVC_ROOT": str(folder), "DVC_EXP_NAME": "brave-newt"}, {})
    return folder


def only_run(folder: Path) -> Any:
    [run] = runs(f"sqlite:///{folder}/mlflow.db")
    return run


def test_one_training_is_one_finished_run_named_as_dvc_s_experiment(store: Path) -> None:
    run = only_run(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "brave-newt")
    assert run.data.tags["dvc.exp_name"] == "brave-newt"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["env.torch"] == torch.__version__
    assert run.data.tags["env.threads"] == "2"


def test_params_have_the_keys_of_params_yaml(store: Path) -> None:
    run = only_run(store)
    flat = changed(SHORT).flat()
    assert run.data.params == {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()
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
    for name in ("lr", "train/loss", "train/accuracy", "valid/loss", "valid/accuracy"):
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert logged == list(zip(history["epoch"], history[name], strict=True))
    values = json.loads((store / "evaluate.json").read_text())
    for name in ("accuracy", "accuracy_untrained", "ece", "loss", "macro_f1", "never_predicted"):
        assert run.data.metrics[f"test/{name}"] == values[name]
    assert run.data.metrics["best/valid_accuracy"] == values["valid_accuracy"]
    assert run.data.metrics["seconds/training"] > 0


def test_datasets_have_the_digests_of_their_splits(store: Path, digits: Path) -> None:
    facts = json.loads((digits / "dataset.json").read_text())
    inputs = only_run(store).inputs.dataset_inputs
    found = {entry.tags[0].value: (entry.dataset.name, entry.dataset.digest) for entry in inputs}
    assert found == {
        context: (f"digits {split}", facts["sha256"][split][:32])
        for context, split in [("training", "train"), ("validation", "valid"), ("testing", "test")]
    }


def test_artifacts(store: Path) -> None:
    run = only_run(store)
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names - {"git.patch"} == {"dvc.lock", "dvc.yaml", "evaluate.json", "params.yaml", "plots"}
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


def model_uri(store: Path) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    [output] = only_run(store).outputs.model_outputs
    return f"models:/{output.model_id}"


@pytest.mark.parametrize("load", [mlflow.pytorch.load_model, mlflow.pyfunc.load_model])
def test_the_model_gives_evaluate_s_classes_for_any_batch(
    store: Path, digits: Path, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = load(model_uri(store))
    predictions = pd.read_csv(store / "plots/predictions.csv")
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    images = np.load(digits / "images.npy")[predictions["index"]]
    for batch in (images, images[:1], images[:7]):
        scores = model.predict(batch) if hasattr(model, "predict") else model(torch.tensor(batch)).detach().numpy()
        assert [classes[i] for i in scores.argmax(1)] == predictions["predicted"].tolist()[: len(batch)]


def test_the_model_s_file_holds_tensors_and_json_only(store: Path) -> None:
    path = Path(mlflow.artifacts.download_artifacts(model_uri(store))) / "data/model.pt2"
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".json")]
        [sample] = [name for name in names if "sample_inputs" in name]
        torch.load(io.BytesIO(archive.read(sample)), weights_only=True)
    assert not [name for name in names if name.endswith((".pkl", ".py", ".so"))]


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
    for name in ("train/loss", "valid/accuracy", "test/accuracy", "best/epoch"):
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


@pytest.mark.parametrize(
    ("environment", "uri"),
    [
        ({"DVC_ROOT": "/main"}, "sqlite:////main/mlflow.db"),
        ({}, f"sqlite:///{ROOT}/mlflow.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": ""}, "sqlite:////main/mlflow.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "sqlite:///my/own.db"}, "sqlite:////main/my/own.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "sqlite:////tmp/own.db"}, "sqlite:////tmp/own.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
    ],
)
def test_where_the_store_is(environment: dict[str, str], uri: str) -> None:
    assert Store.from_environment(environment).uri == uri


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("stages/training/metrics.py", None, b"text"),
        ("dos.txt", b"one\r\ntwo\r\n", b"one\r\n2\r\n"),
        ("latin.txt", b"caf\xe9\n", b"th\xe9\n"),
        ("blob.bin", bytes(range(256)), bytes(range(255, -1, -1)) + b"\n\n"),
        ("a name with spaces \u00fc.txt", b"no end", b"another end\n\n"),
    ],
)
def test_the_patch_makes_the_commit_what_was_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes | None, after: bytes
) -> None:
    monkeypatch.chdir(project.root)
    for setting in ("color.ui=always", "diff.noprefix=true", "core.quotepath=true"):
        project("git", "config", *setting.split("="))
    if before is not None:
        (project.root / name).write_bytes(before)
        project("git", "add", "-A")
        project("git", "commit", "-qm", "before")
    (project.root / name).write_bytes(after)
    (project.root.parent / "run.patch").write_bytes(provenance.patch())
    project("git", "checkout", "-q", ".")
    assert (project.root / name).read_bytes() != after
    project("git", "apply", "../run.patch")
    assert (project.root / name).read_bytes() == after


def test_changes_since_the_commit_are_logged(digits: Path, project: Project) -> None:
    project.edit("stages/training/metrics.py", '"""What is measured', '"""What we measured')
    (project.root / "new.py").touch()
    project("python", "-m", "stages.train", str(digits), "data/weights", "net.safetensors", "train.csv")
    [run] = project.runs()
    assert run.data.tags["git.dirty"] == "true"
    assert "new.py" in run.data.tags["git.untracked"]
    assert '+"""What we measured' in load_text(f"{run.info.artifact_uri}/git.patch")


def test_telemetry_is_off_from_the_first_import(project: Project, digits: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.base.params import load_params;"
        "from stages.batches.prepared import Prepared;"
        "from stages.tracking.tracker import Tracker; import torch;"
        f"tracker = Tracker.from_environment(load_params()); data = Prepared(Path({str(digits)!r}));"
        "run = tracker.training(data, torch.device('cpu')); run.__enter__(); run.__exit__(None, None, None);"
        "from mlflow.telemetry.client import get_telemetry_client; print('client:', get_telemetry_client())"
    )
    assert project("python", "-c", program).splitlines()[-1] == "client: None"


@pytest.mark.parametrize("method", ["log_batch", "log_artifacts"])
def test_an_evaluation_that_could_not_be_written_is_completed_by_the_next(
    digits: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"DVC_ROOT": str(tmp_path)}
    run_stages(digits, tmp_path, environment, {}, only="train")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    for experiment in ({}, {"DVC_EXP_NAME": "other"}):  # a run to complete, and one to make
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, method, fail)
            run_stages(digits, tmp_path, environment | experiment, {}, only="evaluate")
        assert capsys.readouterr().err.count("OSError: disk full") == 1
        run_stages(digits, tmp_path, environment | experiment, {}, only="evaluate")
        run = runs(f"sqlite:///{tmp_path}/mlflow.db")[0]
        assert run.info.status == "FINISHED"
        assert {"train/loss", "test/accuracy", "best/epoch"} <= run.data.metrics.keys()
    assert not [run for run in runs(f"sqlite:///{tmp_path}/mlflow.db") if run.info.status == "RUNNING"]


def test_a_store_that_fails_in_the_middle_costs_one_warning(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = mlflow.MlflowClient.log_batch

    def fail_on_metrics(*arguments: Any, metrics: Any = (), **named: Any) -> Any:
        if metrics:
            raise OSError("disk full")
        return write(*arguments, **named)

    monkeypatch.setattr("stages.tracking.run.FLUSH_SECONDS", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", fail_on_metrics)
        run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, {}, only="train")
    assert capsys.readouterr().err.count("warning: MLflow") == 1
    assert only_run(tmp_path).info.status == "FAILED"
    run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, {}, only="evaluate")
    second, first = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert {"train/loss", "test/accuracy"} <= second.data.metrics.keys()


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "sqlite:////etc/passwd", "nonsense://x"]
)
def test_a_store_that_fails_costs_one_warning(
    digits: Path, tmp_path: Path, store: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": uri}, {}, only="train")
    assert capsys.readouterr().err.count(f"warning: MLflow at {uri} failed") == 1
    run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": uri}, {}, only="evaluate")
    assert capsys.readouterr().err.count(f"warning: MLflow at {uri} failed") == 1
    for name in ("net.safetensors", "train.csv", "evaluate.json"):
        assert (tmp_path / name).read_bytes() == (store / name).read_bytes()


def test_eight_first_runs_at_once(project: Project, digits: Path) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 2 ")
    project.edit("params.yaml", "  threads: 2 ", "  threads: 1 ")
    commands = [
        ("python", "-m", "stages.train", str(digits), "data/weights", f"{i}/net", f"{i}/train.csv") for i in range(8)
    ]
    processes = [project.start(*command) for command in commands]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "warning" not in output
    logged = project.runs()
    assert [run.info.status for run in logged] == ["FINISHED"] * 8
    assert len({run.data.metrics["valid/loss"] for run in logged}) == 1
    assert not list(project.root.glob(".mlflow.db.partial*"))


def test_a_server(project: Project, digits: Path, tmp_path: Path) -> None:
    port = free_port()
    uri, backend = f"http://127.0.0.1:{port}", f"sqlite:///{project.root}/server.db"
    command = ["mlflow", "server", "--backend-store-uri", backend, "--host", "127.0.0.1", "--port", str(port)]
    with served(project, *command, "--workers", "1", port=port, MLFLOW_DISABLE_TELEMETRY="true"):
        run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": uri}, {})
        [run] = runs(uri)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test/accuracy"] > 0.5
        [output] = run.outputs.model_outputs
        mlflow.set_tracking_uri(uri)
        assert mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(np.zeros((3, 8, 8), np.uint8)).shape == (
            3,
            10,
        )


def test_the_list_of_rejected_images_is_logged(tmp_path: Path) -> None:
    for seed in range(20):
        write_image(tmp_path / "set" / "ab"[seed % 2] / f"{seed}.png", seed)
    (tmp_path / "set/a/notes.txt").touch()
    params = changed({"prepare.source": "folder", "prepare.on_bad": "skip"})
    prepare(params.prepare, tmp_path / "set", tmp_path / "prepared")
    tracker = Tracker.from_environment(params, {"DVC_ROOT": str(tmp_path)})
    with tracker.training(DatasetInfo(tmp_path / "prepared"), torch.device("cpu")):
        pass
    logged = load_text(f"{only_run(tmp_path).info.artifact_uri}/rejected.csv")
    assert logged == (tmp_path / "prepared/rejected.csv").read_text()
    assert 'a/notes.txt,a,,"not an image' in logged

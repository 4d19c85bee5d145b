"""What a broken store may cost: one warning, and the run there, but not a byte of the results."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from stages.evaluate import evaluate
from stages.tracking import provenance
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, Project, params_with, runs
from tests.tracking.conftest import SHORT, only_run, outputs, run_stages


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
        assert {"train/loss", "test/accuracy", "epoch/best"} <= run.data.metrics.keys()
        assert len(run.outputs.model_outputs) == 1
    assert not [run for run in runs(f"sqlite:///{tmp_path}/mlflow.db") if run.info.status == "RUNNING"]


def test_a_store_that_fails_in_the_middle_costs_one_warning(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write = mlflow.MlflowClient.log_batch

    def fail_on_metrics(*arguments: Any, metrics: Any = (), **named: Any) -> Any:
        if metrics:
            raise OSError("disk full")
        return write(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", fail_on_metrics)
        run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, {}, only="train")
    assert capsys.readouterr().err.count("warning: MLflow") == 1
    assert only_run(tmp_path).info.status == "RUNNING"
    run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, {}, only="evaluate")
    assert only_run(tmp_path).info.status == "FINISHED"
    assert {"train/loss", "test/accuracy"} <= only_run(tmp_path).data.metrics.keys()


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
    assert outputs(tmp_path) == outputs(store)


@pytest.mark.parametrize(
    ("method", "writes"),
    [
        ("create_run", 0),  # at the start
        ("log_batch", 1),  # in the middle: the params are written, the first metrics are not
        ("set_terminated", 0),  # at the end
    ],
)
def test_no_output_depends_on_when_the_store_fails(
    digits: Path,
    tmp_path: Path,
    store: Path,
    method: str,
    writes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, calls = getattr(mlflow.MlflowClient, method), []

    def fail(*arguments: Any, **named: Any) -> Any:
        calls.append(method)
        if len(calls) > writes:
            raise OSError("disk full")
        return write(*arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, method, fail)
    run_stages(digits, tmp_path, {"DVC_ROOT": str(tmp_path)}, {})
    assert capsys.readouterr().err.count("OSError: disk full") == 2, "one warning a stage"
    assert len(calls) > writes
    assert outputs(tmp_path) == outputs(store)
    assert "plots/pictures/learning_curves.png" in outputs(store)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("epoch ", "kept ", "test accuracy"))]


def test_a_read_only_store_costs_one_line(
    digits: Path, tmp_path: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own nothing else is said, such as a traceback of SQLAlchemy's."""
    shutil.copy(store / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"
    run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": uri}, {}, only="train")
    [line] = lines(capfd.readouterr().err)
    assert line.startswith(f"warning: MLflow at {uri} failed")
    assert line.endswith("OperationalError: attempt to write a readonly database")


@pytest.mark.parametrize("when", ["create", pytest.param("log", marks=pytest.mark.slow)])
def test_a_full_disk_costs_one_line(project: Project, digits: Path, when: str) -> None:
    shutil.copytree(digits, project.root / "data/prepared")
    command = next(line for line in (ROOT / "dvc.yaml").read_text().splitlines() if "stages train" in line)
    command = command.split("cmd: ")[1].strip()
    if when == "log":
        project("python", "-c", "from stages.tracking.store import Store; Store.from_environment().client()")
    # No file can become larger than this many blocks of 1,024 bytes; the empty store has 900.
    kilobytes = (project.root / "mlflow.db").stat().st_size // 1024 if when == "log" else 300
    output = project("bash", "-c", f"ulimit -f {kilobytes}; {command}")
    [line] = [line for line in output.splitlines() if not line.startswith(("epoch ", "kept "))]
    assert line.startswith(f"warning: MLflow at sqlite:///{project.root}/mlflow.db failed")
    assert line.endswith("OperationalError: disk I/O error")


def test_no_output_depends_on_tracking(digits: Path, tmp_path: Path, store: Path) -> None:
    params = params_with(SHORT)
    weights, history, results = (tmp_path / name for name in ("net.safetensors", "train.csv", "evaluate.json"))
    train(params.train, digits, weights, history, Tracker.off())
    evaluate(params, weights, digits, history, results, tmp_path / "plots", Tracker.off())
    assert outputs(tmp_path) == outputs(store)
    assert {path.name for path in tmp_path.iterdir()} == {weights.name, history.name, results.name, "plots"}


def fail_in_the_middle(folder: Path, at: int) -> sqlite3.Connection:
    """Let the database refuse metrics from an epoch on; the caller ends that."""
    connection = sqlite3.connect(folder / "mlflow.db")
    condition = f"when new.step >= {at} begin select raise(abort, 'disk is full'); end"
    connection.execute(f"create trigger full before insert on metrics {condition}")
    connection.commit()
    return connection


@pytest.mark.parametrize("experiment", [{}, {"DVC_EXP_NAME": "brave-newt", "DVC_EXP_BASELINE_REV": "0" * 40}])
def test_a_training_during_which_the_store_failed_is_one_row_in_the_end(
    digits: Path, tmp_path: Path, experiment: dict[str, str]
) -> None:
    environment = {"DVC_ROOT": str(tmp_path)} | experiment
    Store.from_environment(environment).client()
    failing = fail_in_the_middle(tmp_path, 2)
    run_stages(digits, tmp_path, environment, {}, only="train")
    failing.execute("drop trigger full")
    failing.commit()
    begun = only_run(tmp_path)
    assert begun.info.status == "RUNNING"
    # Of other params, and of another experiment: these have to stay as they are.
    store = Store.from_environment(environment)
    for tags in ({"directory": str(ROOT)}, {"dvc.exp_name": "other"}):
        other = store.client().create_run(store.experiment_id, tags=tags)
        store.client().log_param(other.info.run_id, "train.seed", "7")
        store.client().set_terminated(other.info.run_id, "FAILED")

    run_stages(digits, tmp_path, environment, {}, only="evaluate")
    *others, run = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert [other.info.status for other in others] == ["FAILED"] * 2
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    assert "training" not in run.data.tags
    assert run.data.tags["env.host"] == begun.data.tags["env.host"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for name, values in pd.read_csv(tmp_path / "train.csv").set_index("epoch").items():
        logged = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, str(name))]
        assert logged == list(values.items())
    assert {"test/accuracy", "epoch/best"} <= run.data.metrics.keys()


def test_what_a_failed_training_left_is_no_other_s(digits: Path, tmp_path: Path) -> None:
    """One with other epochs, one that failed by itself, one of a living process, and one of another machine."""
    environment = {"DVC_ROOT": str(tmp_path)}
    store = Store.from_environment(environment)
    client = store.client()
    tags = {"directory": str(ROOT)}
    made: list[dict[str, Any]] = [
        {"metric": 9.0},
        {"tags": {"mlflow.note.content": "the loss is nan"}},
        {"tags": provenance.of_writer(), "status": "RUNNING"},
        {"tags": {"process": "another-host 1 1"}, "status": "RUNNING"},
    ]
    for made_of in made:
        run = client.create_run(store.experiment_id, tags=tags | made_of.get("tags", {}))
        if "metric" in made_of:
            client.log_metric(run.info.run_id, "train/loss", made_of["metric"], step=1)
        client.update_run(run.info.run_id, made_of.get("status", "FAILED"))
    run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, {}, only="train")
    run_stages(digits, tmp_path, environment, {}, only="evaluate")
    assert [run.info.status for run in store.search()] == ["FINISHED", "RUNNING", "RUNNING", "FAILED", "FAILED"]

"""What DVC's experiments and MLflow's runs hold of a sweep."""

import csv
import json
from pathlib import Path

import pytest

from stages.tracking.result import EVALUATION_TAG
from stages.tracking.store import Store
from tests.conftest import Project
from tools.sweep.experiments import Metrics
from tools.sweep.results import SweepRuns, commits_of, metrics_of


def test_the_metrics_are_those_of_the_epoch_that_was_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with (project.root / "metrics/train.csv").open() as file:
        epochs = [(float(row["valid/accuracy"]), float(row["valid/loss"])) for row in csv.DictReader(file)]
    accuracy = max(accuracy for accuracy, _ in epochs)
    loss = min(loss for found, loss in epochs if found == accuracy)
    test = json.loads((project.root / "metrics/evaluate.json").read_text())["accuracy"]
    assert metrics_of("HEAD") == Metrics(accuracy, loss, test)


def test_experiments_are_those_of_the_baseline(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    head = project("git", "rev-parse", "HEAD").strip()
    other = "0123456789" * 4
    for baseline, name in ((head, "ours"), (other, "theirs")):
        project("git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", "HEAD")
    assert commits_of(head) == {"ours": head}
    assert commits_of(other) == {"theirs": head}
    for baseline, name in ((head, "ours"), (other, "theirs")):
        project("git", "update-ref", "-d", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}")


def test_of_several_runs_of_an_experiment_the_latest_counts(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runs = SweepRuns("s", "base", "owner")
    store = Store.from_environment()
    tags = {"sweep": "s", "dvc.baseline_rev": "base", "dvc.exp_name": "lr-1", EVALUATION_TAG: "0" * 64}
    made = [store.client().create_run(store.experiment_id, time, tags).info.run_id for time in (1000, 3000, 2000)]
    assert runs.evaluated() == {"lr-1": made[1]}


def test_a_store_that_fails_costs_one_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    (tmp_path / "broken.db").write_text("this is no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/broken.db")
    runs = SweepRuns("s", "HEAD", "owner")
    runs.close_running()
    assert (runs.epochs("a"), runs.evaluated(), list(runs.add_missing(set()))) == ([], {}, [])
    assert capsys.readouterr().err.count("warning: MLflow at") == 1

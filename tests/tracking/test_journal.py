"""Journals: what is read of one in any state, and which run they become, whatever was interrupted."""

import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import pytest

from stages.base.errors import InputError
from stages.tracking import journal as journal_module
from stages.tracking.journal import (
    DONE,
    EVENTS,
    DamagedError,
    Events,
    Journal,
    files_of,
    folder_of,
    is_written,
    journals,
)
from stages.tracking.replay import delivered, pending
from stages.tracking.store import Store
from stages.tracking.tracker import Record
from tests.conftest import ROOT, FollowerHere, clean_environment
from tests.tracking.conftest import only_run, run_stages
from tools.sync import Sync


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return {"DVC_ROOT": str(tmp_path)}


def begun(
    environment: dict[str, str], tags: dict[str, str] | None = None, patch: bytes = b"+", **params: str
) -> Journal:
    """A journal of a training that has two epochs."""
    journal = Journal(environment, store="sqlite:///PROJECT/mlflow.db", experiment="repronet")
    journal.write(
        "training", tags=tags or {}, params=params, datasets=[], files=journal.keep("git.patch", patch) if patch else {}
    )
    for step in (1, 2):
        journal.write("points", step=step, metrics={"train/loss": 1 / step})
    return journal


def store() -> Store:
    return Store.from_environment()


def runs() -> list[Any]:
    return store().search()


def test_what_is_written_is_read_as_it_comes(environment: dict[str, str]) -> None:
    journal = begun(environment)
    events = Events(journal.folder)
    assert [event["kind"] for event in events.read()] == ["journal", "training", "points", "points"]
    assert events.read() == []
    journal.write("end", status="FINISHED", note="")
    [end] = events.read()
    assert (end["n"], end["status"]) == (5, "FINISHED")
    assert abs(end["time"] / 1000 - time.time()) < 5
    journal.close()
    assert journal.folder.exists(), "nothing has brought it"


def test_others_can_read_nothing(environment: dict[str, str]) -> None:
    assert begun(environment).folder.stat().st_mode & 0o777 == 0o700


def test_the_end_of_a_line_that_a_power_cut_has_left_is_not_read(environment: dict[str, str]) -> None:
    journal = begun(environment)
    path = journal.folder / EVENTS
    text = path.read_bytes().rstrip(b"\0")
    journal.close()
    path.write_bytes(text[:-5] + bytes(1000))
    events = Events(journal.folder)
    assert len(events.read()) == 3
    assert not events.is_damaged
    delivered(store(), journal.folder)
    [run] = runs()
    assert (run.info.status, run.data.metrics) == ("KILLED", {"train/loss": 1.0})


@pytest.mark.parametrize(("old", "new"), [(b'"n":3', b'"n":7'), (b'{"n":3', b"\0\0\0\0\0\0")])
def test_one_that_is_not_as_it_was_written_is_put_aside(environment: dict[str, str], old: bytes, new: bytes) -> None:
    journal = begun(environment)
    path = journal.folder / EVENTS
    journal.close()
    path.write_bytes(path.read_bytes().replace(old, new))
    sync = Sync(store(), dry_run=False)
    [(name, outcome, detail)] = list(sync.journals())
    assert (name, str(outcome)) == ("no commit", "skipped")
    assert detail.startswith(", the journal ")
    assert list(sync.journals()) == []
    assert journal.folder.with_suffix(".damaged").exists()


def test_a_file_of_one_is_as_it_was_and_inside(environment: dict[str, str], tmp_path: Path) -> None:
    journal = begun(environment)
    [(name, digest)] = journal.keep("a/b", b"content").items()
    assert files_of(journal.folder, {name: digest})["a/b"].read_bytes() == b"content"
    (tmp_path / "secret").write_bytes(b"content")
    for other in ("../../../secret", str(tmp_path / "secret"), "gone"):
        with pytest.raises(DamagedError, match="is damaged"):
            files_of(journal.folder, {other: digest})
    (journal.folder / "files/a/b").write_bytes(b"other")
    with pytest.raises(DamagedError, match="is damaged: a/b"):
        files_of(journal.folder, {name: digest})


def test_one_of_nobody_is_no_harm(environment: dict[str, str]) -> None:
    (folder_of(environment) / "a").mkdir(parents=True)
    (folder_of(environment) / "b").mkdir(parents=True)
    (folder_of(environment) / "a" / EVENTS).write_text('{"n":1}\n')
    (folder_of(environment) / "b" / EVENTS).write_text('{"n":1,"time":1,"kind":"journal"}\n[]\n')
    assert [each.store for each in pending()] == [""]
    assert not next(pending()).is_of(store())


def test_one_of_later_code_says_so(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    journal = begun(environment)
    path = journal.folder / EVENTS
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(InputError, match="is of version 2; this code reads up to 1"):
        Events(journal.folder).read()
    assert list(journals(environment)) == []
    assert "take later code" in capsys.readouterr().err
    assert journal.folder.exists()


def test_what_killed_processes_left_of_one_goes(environment: dict[str, str]) -> None:
    done, empty, young = (folder_of(environment) / name for name in (f"a{DONE}", "b", "c"))
    for folder in (done, empty, young):
        folder.mkdir(parents=True)
        (folder / EVENTS).write_bytes(bytes(100))
    os.utime(empty, (0, 0))
    assert list(journals(environment)) == []
    assert [folder.exists() for folder in (done, empty, young)] == [False, False, True]


def test_one_is_written_as_long_as_its_process_lives(environment: dict[str, str]) -> None:
    program = (
        "import os; from stages.tracking.journal import Journal; j = Journal(os.environ); print(j.folder); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean_environment() | environment | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert is_written(folder)
    process.kill()
    process.communicate()
    assert not is_written(folder)


def test_without_a_place_in_the_project_a_temporary_one_serves(
    environment: dict[str, str], digits: Path, tmp_path: Path
) -> None:
    (tmp_path / ".repronet").mkdir()
    (tmp_path / ".repronet/journals").write_text("no folder")
    run_stages(digits, tmp_path, environment, {})
    assert only_run(tmp_path).info.status == "FINISHED"


def test_a_disk_that_becomes_full_costs_a_line_and_the_journal(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(store(), environment, is_on=True)

    def fail(_: Journal) -> None:
        raise OSError(28, "No space left on device", "a file")

    record.write(fail)
    record.write(fail)
    record.finish()
    assert capsys.readouterr().err.count("warning: this run cannot be logged: No space left on device: a file") == 1
    assert list(journals(environment)) == []


def test_bringing_one_twice_changes_nothing(environment: dict[str, str]) -> None:
    journal = begun(environment, seed="0")
    journal.write("end", status="FAILED", note="the loss is nan")
    journal.close()
    copy = shutil.copytree(journal.folder, journal.folder.parent / "kept")
    run_id = delivered(store(), journal.folder)
    [before] = [run.to_dictionary() for run in runs()]
    copy.rename(journal.folder)
    assert delivered(store(), journal.folder) == run_id
    assert [run.to_dictionary() for run in runs()] == [before]
    assert delivered(store(), journal.folder) == "", "it is there no more"


def test_a_run_that_was_asked_for_twice_is_one(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has made the run, late, of which no answer came."""
    journal = begun(environment)
    journal.close()
    create = mlflow.MlflowClient.create_run

    def twice(*arguments: Any, **named: Any) -> Any:
        create(*arguments, **named)
        return create(*arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", twice)
    run_id = delivered(store(), journal.folder)
    assert [run.info.run_id for run in runs()] == [run_id]


def test_a_training_that_went_on_is_one_run_whatever_brings_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice while the store was away: the last journal has those before it brought first, by their number."""
    monkeypatch.setattr(journal_module, "now", count(1_800_000_000_000, -1).__next__)  # a clock that is set back
    first, second, last = [
        begun(environment, {"training.id": "1", "training.attempt": number}, seed="0") for number in ("8", "9", "10")
    ]
    killed = first, second
    last.write("points", step=3, metrics={"train/loss": 0.25})
    last.write("tags", tags={"weights.sha256": "0"})
    last.write("end", status="FINISHED", note="")
    for journal in (*killed, last):
        journal.close()
    [began] = [event["time"] for event in Events(first.folder).read() if event["kind"] == "training"]
    delivered(store(), last.folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    history = store().client().get_metric_history(run.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == {1: 1.0, 2: 0.5, 3: 0.25}
    assert (run.info.start_time, run.data.tags["training.attempt"]) == (began, "10")
    assert list(pending()) == []


def test_a_training_that_was_killed_at_its_very_end_is_one_run(environment: dict[str, str]) -> None:
    """Its run is FINISHED, but its checkpoint not yet removed: it is repeated, and the run stays as it is."""
    for number, patch in (("1", b"+"), ("2", b"other")):
        journal = begun(environment, {"training.id": "1", "training.attempt": number}, patch, seed="0")
        journal.write("tags", tags={"resumed.epoch": number})
        journal.write("end", status="FINISHED", note="")
        journal.close()
        delivered(store(), journal.folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert len(store().client().get_metric_history(run.info.run_id, "train/loss")) == 2
    assert (run.data.tags["training.attempt"], run.data.tags["resumed.epoch"]) == ("1", "1")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/git.patch") == "+"


def test_a_training_that_goes_on_is_what_it_is_then(environment: dict[str, str]) -> None:
    """An experiment at first; then its changes were committed, and it is run again as the workspace."""
    tags = {"training.id": "1", "mlflow.source.git.commit": "0" * 40}
    before = {"dvc.exp_name": "a", "dvc.baseline_rev": "0" * 40, "sweep": "s", "git.untracked": "x"}
    for own, patch in ((before, b"+"), ({}, b"")):
        journal = begun(environment, tags | own, patch, seed="0")
        journal.close()
        delivered(store(), journal.folder)
    [run] = runs()
    assert run.info.run_name == "000000000"
    assert not run.data.tags.keys() & before.keys()
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/git.patch") == ""


def test_one_that_is_damaged_is_no_harm_to_the_next(environment: dict[str, str]) -> None:
    first, last = (begun(environment, {"training.id": "1", "training.attempt": number}, seed="0") for number in "12")
    for journal in (first, last):
        journal.close()
    path = first.folder / EVENTS
    path.write_bytes(path.read_bytes().replace(b'"n":3', b'"n":7'))
    delivered(store(), last.folder)
    [run] = runs()
    assert run.data.metrics == {"train/loss": 0.5}
    assert [folder.name for folder in folder_of(environment).iterdir()] == [f"{first.folder.name}.damaged"]


def test_equal_trainings_have_their_own_evaluations(
    digits: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FollowerHere, "finish", lambda _self: None)  # nothing follows
        for _ in range(2):
            run_stages(digits, tmp_path, environment, {})
    kinds = {journal.folder.name: journal.what for journal in pending()}
    assert list(kinds.values()) == ["training", "evaluation"] * 2
    assert len(list(Sync(store(), dry_run=False).journals())) == 4
    found = {run.data.tags["journal"]: run.data.tags["journal.evaluation"] for run in runs()}
    first, evaluated_first, second, evaluated_second = kinds
    assert found == {first: evaluated_first, second: evaluated_second}


def test_params_that_are_others_by_now_make_another_run(environment: dict[str, str]) -> None:
    tags = {"training.id": "1"}
    for workers in ("0", "2"):
        journal = begun(environment, tags, workers=workers)
        journal.close()
        delivered(store(), journal.folder)
    assert [(run.info.status, run.data.params["workers"]) for run in runs()] == [("KILLED", "2"), ("KILLED", "0")]


def test_one_of_another_store_is_left(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(environment)
    journal.close()
    other = Sync(Store.from_environment({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}), dry_run=False)
    [(_, outcome, detail)] = list(other.journals())
    assert str(outcome) == "left"
    assert detail == ", it is for MLflow at sqlite:///PROJECT/mlflow.db, experiment repronet"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow has set
    assert runs() == []
    [(_, planned, _)] = list(Sync(store(), dry_run=True).journals())
    assert str(planned) == "would be brought"
    [(_, outcome, _)] = list(Sync(store(), dry_run=False).journals())
    assert str(outcome) == "brought"


def test_an_evaluation_brings_the_training_that_waits(
    digits: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FollowerHere, "finish", lambda _self: None)  # nothing follows
        run_stages(digits, tmp_path, environment, {}, only="train")
    assert len(list(pending())) == 1
    run_stages(digits, tmp_path, environment, {}, only="evaluate")
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    assert "training" not in run.data.tags
    assert {"train/loss", "test/accuracy", "seconds/training"} <= run.data.metrics.keys()


@pytest.mark.parametrize("call", ["log_outputs", "log_artifacts", "set_terminated"])
def test_an_evaluation_that_was_cut_is_done_once(
    digits: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("cut")

    with monkeypatch.context() as patch:
        run_stages(digits, tmp_path, environment, {}, only="train")
        patch.setattr(mlflow.MlflowClient, call, fail)
        run_stages(digits, tmp_path, environment, {}, only="evaluate")
    assert [str(outcome) for _, outcome, _ in Sync(store(), dry_run=False).journals()] == ["brought"]
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    client = store().client()
    assert len(client.get_metric_history(run.info.run_id, "test/accuracy")) == 1
    models = client.search_logged_models([run.info.experiment_id])
    assert [model.model_id for model in models] == [output.model_id for output in run.outputs.model_outputs]

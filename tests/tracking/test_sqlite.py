"""The SQLite file of a store: at any path, closed to others, and moved with its artifacts."""

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.artifacts import load_text

from stages.tracking import sqlite
from stages.tracking.store import Store


@pytest.mark.parametrize("name", ["Tom's C# 100%", "what?x=1", "p%20q", "a;b&c=d", "plain"])
def test_a_store_at_any_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    store = Store.from_environment({"DVC_ROOT": str(folder)})
    assert Store.from_environment({"MLFLOW_TRACKING_URI": store.uri}).uri == store.uri, "as a sweep hands it on"
    assert store.database == folder / "mlflow.db"
    run = store.client().create_run(store.experiment_id, tags={"directory": str(folder)})
    store.client().log_text(run.info.run_id, "text", "a.txt")
    model = store.client().create_logged_model(store.experiment_id, "model", source_run_id=run.info.run_id)
    (tmp_path / name / "mlartifacts/weights").mkdir()
    (tmp_path / name / "mlartifacts/weights/net").touch()
    store.client().log_model_artifacts(model.model_id, str(tmp_path / name / "mlartifacts/weights"))
    assert [file.path for file in store.client().list_logged_model_artifacts(model.model_id)] == ["net"]
    [found] = Store.from_environment({"DVC_ROOT": str(folder)}).search(tags={"directory": str(folder)})
    mlflow.set_tracking_uri(store.uri)
    assert load_text(f"{found.info.artifact_uri}/a.txt") == "text"
    assert {path.name for path in tmp_path.iterdir()} == {name}, "no other folder was made"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}


@pytest.mark.parametrize(
    ("uri", "path", "absolute"),
    [
        ("sqlite:///my/own.db", "my/own.db", "sqlite:////main/my/own.db"),
        ("sqlite:////tmp/own.db", "/tmp/own.db", "sqlite:////tmp/own.db"),
        ("sqlite:///a%20b.db", "a b.db", "sqlite:////main/a b.db"),
        ("sqlite:///own.db?timeout=9", "own.db", "sqlite:////main/own.db?timeout=9"),
        ("sqlite:///file:own.db?mode=ro&uri=true", "own.db", "sqlite:///file:/main/own.db?mode=ro&uri=true"),
        ("http://127.0.0.1:1", None, "http://127.0.0.1:1"),
        ("postgresql://host/db", None, "postgresql://host/db"),
    ],
)
def test_addresses(uri: str, path: str | None, absolute: str) -> None:
    found = sqlite.database_of(uri)
    assert (str(found) if found else None) == path
    assert sqlite.absolute(uri, Path("/main")) == absolute


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_others_can_read_nothing(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(sqlite.address(tmp_path / "mlflow.db"), "repronet")
        run = store.client().create_run(store.experiment_id)
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("pragma journal_mode=wal")
            connection.execute("create table extra (x)")
            connection.commit()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {
        "mlartifacts": 0o700,
        "mlflow.db": 0o600,
        "mlflow.db-shm": 0o600,
        "mlflow.db-wal": 0o600,
        "mlflow.db.lock": 0o600,
    }
    store.client().log_text(run.info.run_id, "text", "a.txt")


def text_of(store: Store, name: str) -> str:
    [run] = store.search(tags={"mlflow.runName": name})
    mlflow.set_tracking_uri(store.uri)
    return load_text(f"{run.info.artifact_uri}/a.txt")


def new_run(store: Store, name: str) -> str:
    run = store.client().create_run(store.experiment_id, run_name=name)
    store.client().log_text(run.info.run_id, name, "a.txt")
    return str(run.info.run_id)


@pytest.mark.parametrize("kind", ["plain", "file URI"])
def test_artifacts_follow_a_store_that_is_moved_or_copied(tmp_path: Path, kind: str) -> None:
    old, new, copy = tmp_path / "it's old", tmp_path / "it's new", tmp_path / "copy"
    old.mkdir()
    store = Store(sqlite.address(old / "mlflow.db"), "repronet")
    client = store.client()
    if kind == "file URI":  # as other programs would have made it
        location = (old / "mlartifacts").as_uri()
        with closing(sqlite3.connect(old / "mlflow.db")) as connection, connection:
            connection.execute("update experiments set artifact_location = ? where name = 'repronet'", (location,))
    elsewhere = client.create_experiment("elsewhere", str(tmp_path / "other/mlartifacts"))
    (tmp_path / "other/mlartifacts").mkdir(parents=True)
    run_id = new_run(store, "first")
    model = client.create_logged_model(store.experiment_id, "model", source_run_id=run_id)
    client.create_registered_model("net")
    client.create_model_version("net", model.artifact_location, run_id)

    old.rename(new)
    moved = Store(sqlite.address(new / "mlflow.db"), "repronet")
    assert text_of(moved, "first") == "first"
    new_run(moved, "second")
    shutil.copytree(new, copy)
    copied = Store(sqlite.address(copy / "mlflow.db"), "repronet")
    assert text_of(copied, "second") == "second"
    new_run(copied, "third")
    assert not old.exists()
    assert len(list((new / "mlartifacts").glob("*/artifacts/a.txt"))) == 2
    assert len(list((copy / "mlartifacts").glob("*/artifacts/a.txt"))) == 3
    for at, folder in ((moved, new), (copied, copy)):
        places = [
            at.client().get_experiment(store.experiment_id).artifact_location,
            at.client().get_run(run_id).info.artifact_uri,
            at.client().get_logged_model(model.model_id).artifact_location,
            at.client().get_model_version("net", "1").source,
            at.client().get_model_version_download_uri("net", "1"),
        ]
        assert all(sqlite.path_of(place).is_relative_to(folder) for place in places), places
        assert at.client().get_experiment(elsewhere).artifact_location == str(tmp_path / "other/mlartifacts")


def test_a_store_whose_artifacts_stayed_where_they_were(tmp_path: Path) -> None:
    store = Store(sqlite.address(tmp_path / "old/mlflow.db"), "repronet")
    new_run(store, "first")
    (tmp_path / "new").mkdir()
    (tmp_path / "old/mlflow.db").rename(tmp_path / "new/mlflow.db")
    assert text_of(Store(sqlite.address(tmp_path / "new/mlflow.db"), "repronet"), "first") == "first"

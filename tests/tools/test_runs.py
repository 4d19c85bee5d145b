"""What is read of MLflow's runs, and how people's names find them, in a real store."""

import subprocess
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag

from stages.base.errors import InputError
from stages.tracking import provenance
from stages.tracking.result import EVALUATION_TAG
from stages.tracking.run import is_abandoned
from tests.conftest import Project
from tools.runs import UNLOGGED, EvaluatedRun, Runs, read_predictions


def evaluated(store: Runs, name: str) -> str:
    """Add a run that only looks as if it had been evaluated, before all others; return its id."""
    run = store.client.create_run(store.experiment_id, 1, {EVALUATION_TAG: "0"}, run_name=name)
    return str(run.info.run_id)


def test_a_run_is_read_as_it_was_logged(store: Runs, compared: Project) -> None:
    run = store.find("seed-1")
    logged = store.client.get_run(run.id)
    assert (run.name, run.params["train.seed"]) == ("seed-1", "1")
    used = {f"used.{name}": value for name, value in run.used.items()}
    assert (run.params | used, run.metrics, run.tags) == (logged.data.params, logged.data.metrics, logged.data.tags)
    assert (run.params["train.optimizer.lr"], run.used["optimizer.lr"]) == ("null", "0.03")
    assert logged.outputs is not None
    assert run.model == f"models:/{logged.outputs.model_outputs[0].model_id}"
    artifacts = Path(logged.info.artifact_uri)
    assert run.patch == ((artifacts / "git.patch").read_text() if (artifacts / "git.patch").exists() else "")
    predictions = (compared.root / "seed-1/plots/predictions.csv").read_text()
    assert run.predictions.equals(read_predictions(predictions))
    assert run.right().tolist() == [row.split(",")[2] == row.split(",")[3] for row in predictions.splitlines()[1:]]
    assert run.right().mean() == pytest.approx(run.metrics["test/accuracy"], abs=1e-6)


def test_data_are_told_apart_by_their_digests(store: Runs) -> None:
    run, other = store.find("seed-0"), store.find("others")
    assert sorted(run.data) == ["testing", "training", "validation"]
    assert len(set(run.data.values())) == 3
    assert [context for context in run.data if run.data[context] != other.data[context]] == ["testing"]


def test_a_run_is_found_by_its_id_and_the_latest_of_several_by_its_name(store: Runs) -> None:
    ids = {name: store.find(name).id for name in ("seed-0", "seed-1", "closed")}
    assert store.find(ids["closed"]).name == "closed"
    store.client.update_run(ids["closed"], name="seed-1")
    assert store.find("seed-1").id == ids["seed-1"]
    latest = f"seed-1 ({ids['seed-1'][:8]})"
    assert store.find("seed-1").remark == f"{latest} is the latest seed-1; earlier: {ids['closed'][:8]}"
    assert store.find(ids["closed"]).remark == ""
    store.client.update_run(ids["seed-1"], name="closed")
    assert store.find("closed").id == ids["seed-1"]
    assert store.find("seed-1").id == ids["closed"]


def test_runs_of_killed_processes_are_ended(store: Runs) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    [here] = provenance.of_writer().values()
    machine, _, start = here.rsplit(maxsplit=2)
    processes = {"killed": f"{machine} {ended.pid} {start}", "alive": here, "elsewhere": f"other-{machine} 1 {start}"}
    ids = {
        name: store.client.create_run(store.experiment_id, 1, {provenance.PROCESS_TAG: process}).info.run_id
        for name, process in processes.items()
    }
    store.client.set_tag(ids["killed"], "mlflow.note.content", "what somebody has written on its page")
    Runs()
    found = {name: store.client.get_run(run_id) for name, run_id in ids.items()}
    statuses = {name: run.info.status for name, run in found.items()}
    assert statuses == {"killed": "KILLED", "alive": "RUNNING", "elsewhere": "RUNNING"}


def test_what_is_abandoned_may_be_completed(store: Runs) -> None:
    [here] = provenance.of_writer().values()
    elsewhere = f"other-{here}"
    for process, status, note, expected in [
        (here, "KILLED", "", False),  # it goes on, and was ended by mistake
        (elsewhere, "KILLED", "", True),
        (elsewhere, "KILLED", "KeyboardInterrupt", False),
        (elsewhere, "FAILED", "", True),
        (elsewhere, "RUNNING", "", False),
        (here, "FINISHED", "", False),
    ]:
        tags = {provenance.PROCESS_TAG: process} | ({"mlflow.note.content": note} if note else {})
        run_id = store.client.create_run(store.experiment_id, 1, tags).info.run_id
        store.client.update_run(run_id, status)
        assert is_abandoned(store.client.get_run(run_id)) == expected, (process, status, note)


def test_artifacts_that_cannot_be_reached(store: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where MLflow's server is there, but not the S3 that it has them in."""
    run = store.find("seed-0")

    def fail(*_: object) -> None:
        raise ConnectionError("no route to it")

    monkeypatch.setattr(store.client, "list_artifacts", fail)
    for read in (
        lambda: store.find("seed-0"),
        lambda: store.weights(run, tmp_path),
        lambda: store.artifact(run, "params.yaml", tmp_path),
    ):
        with pytest.raises(InputError, match=r"^MLflow at sqlite:.* cannot be read: ConnectionError: no route to it$"):
            read()


def best_of(store: Runs, figures: dict[str, tuple[float, float]]) -> EvaluatedRun:
    """Return what is called best with these validation accuracies and losses, and 0 and 9 for the other runs."""
    for name in ("seed-0", "seed-1", "closed", "others"):
        accuracy, loss = figures.get(name, (0, 9))
        store.client.log_metric(store.find(name).id, "best/valid_accuracy", accuracy)
        store.client.log_metric(store.find(name).id, "best/valid_loss", loss)
    return store.find("best")


def test_best_is_the_highest_validation_accuracy_then_the_lowest_loss(store: Runs) -> None:
    assert best_of(store, {"seed-0": (0.9, 0.5), "others": (0.8, 0.1)}).name == "seed-0"
    assert best_of(store, {"seed-0": (0.9, 0.5), "closed": (0.9, 0.4), "others": (0.8, 0.1)}).name == "closed"


def test_others_that_are_as_good_as_the_best_are_named(store: Runs) -> None:
    best = best_of(store, {"seed-0": (0.9, 0.5), "closed": (0.9, 0.5), "seed-1": (0.9, 0.6)})
    assert best.name == "seed-0", "the latest"
    ids = {name: store.find(name).id[:8] for name in ("seed-0", "closed")}
    assert best.remark == f"best is seed-0 ({ids['seed-0']}); as good by validation: closed ({ids['closed']})"
    assert best_of(store, {"seed-0": (0.9, 0.5), "closed": (0.9, 0.4)}).remark == ""
    assert store.find("closed").remark == ""


def test_losses_of_different_functions_break_no_tie(store: Runs) -> None:
    assert best_of(store, {"seed-0": (0.9, 0.5), "closed": (0.9, 0.4)}).name == "closed"
    client = store.client
    other = client.create_run(store.experiment_id, 1, {EVALUATION_TAG: "0"}, run_name="other")
    inputs = client.get_run(store.find("closed").id).inputs
    assert inputs is not None
    client.log_inputs(other.info.run_id, inputs.dataset_inputs)
    client.log_param(other.info.run_id, "train.loss.name", "MSELoss")
    client.log_metric(other.info.run_id, "best/valid_accuracy", 0.9)
    client.log_metric(other.info.run_id, "best/valid_loss", 0.6)
    best = store.find("best")
    assert best.name == "closed"
    assert best.remark.endswith(f"; as good by validation: other ({other.info.run_id[:8]})")


def test_a_try_on_few_images_is_not_the_best_of_all(store: Runs) -> None:
    few = store.client.create_run(store.experiment_id, run_name="try").info.run_id  # the latest
    data = DatasetInput(Dataset("digits", "1" * 32, "", ""), [InputTag("mlflow.data.context", "validation")])
    store.client.log_inputs(few, [data])
    store.client.log_param(few, "prepare.limit", "20")
    for name, value in {"best/valid_accuracy": 1, "best/valid_loss": 0, "test/accuracy": 1}.items():
        store.client.log_metric(few, name, value)
    store.client.set_tag(few, EVALUATION_TAG, "0" * 64)
    store.client.set_terminated(few)
    try:
        assert store.evaluated()[0].info.run_id == few
        assert best_of(store, {"seed-0": (0.9, 0.5)}).name == "seed-0"
    finally:
        store.client.delete_run(few)


def test_best_is_among_those_validated_on_the_images_of_the_latest(store: Runs) -> None:
    elsewhere = evaluated(store, "elsewhere")
    data = DatasetInput(Dataset("digits", "0" * 32, "", ""), [InputTag("mlflow.data.context", "validation")])
    store.client.log_inputs(elsewhere, [data])
    store.client.log_metric(elsewhere, "best/valid_accuracy", 1)
    store.client.log_metric(elsewhere, "best/valid_loss", 0)
    assert best_of(store, {"seed-0": (0.9, 0.5)}).name == "seed-0"


def test_unknown_names_are_answered_with_those_that_there_are(store: Runs) -> None:
    store.client.create_run(store.experiment_id, run_name="trained only")
    with pytest.raises(InputError) as error:
        store.find("trained only")
    there_are = "there are: best, seed-1, seed-0, closed, others"
    begins = f"no evaluated run is called 'trained only' in {store.uri}; {there_are}; "
    assert str(error.value) == f"{begins}{UNLOGGED}"
    assert UNLOGGED.startswith("python -m tools.sync ")
    for number in range(25):
        evaluated(store, f"more-{number}")
    with pytest.raises(InputError, match=rf"{there_are}, more-\d+, .* and 10 more; {UNLOGGED}$"):
        store.find("seed-7")


def test_models_of_the_registry(store: Runs) -> None:
    assert store.model_version("own", "champion") is None
    store.client.create_registered_model("own")
    assert store.model_version("own", "champion") is None
    run = store.find("seed-0")
    version = store.client.create_model_version("own", run.model, run.id)
    store.client.set_registered_model_alias("own", "champion", version.version)
    found = store.model_version("own", "champion")
    assert found is not None
    assert (found.run_id, found.version) == (run.id, version.version)
    store.client = mlflow.MlflowClient("http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"the registry in sqlite:///.* cannot be read: "):
        store.model_version("own", "champion")


def test_a_store_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there are no runs yet, since there is no .*/mlflow.db: make repro comes "):
        Runs()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///empty.db")
    empty = mlflow.MlflowClient(f"sqlite:///{tmp_path}/empty.db")
    empty.create_experiment("repronet")
    for name in ("best", "seed-0"):
        with pytest.raises(
            InputError, match=f"no evaluated run is called '{name}' in .*; there are: best; {UNLOGGED}$"
        ):
            Runs().find(name)


def test_a_store_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(InputError, match=r"MLflow at sqlite:///.*/mlflow.db cannot be read: DatabaseError: "):
        Runs()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be read: ConnectionError: "):
        Runs()


def test_links_and_files_and_curves(store: Runs, compared: Project, tmp_path: Path) -> None:
    run = store.find("seed-1")
    assert run.link == f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs/{run.id}"
    copied = store.artifact(run, "plots/pictures/confusion.png", tmp_path)
    assert copied is not None
    assert copied.read_bytes() == (compared.root / "seed-1/plots/pictures/confusion.png").read_bytes()
    assert store.artifact(run, "plots/pictures/none.png", tmp_path) is None
    history = pd.read_csv(compared.root / "seed-1/train.csv").set_index("epoch")
    assert store.curve(run, "valid/loss") == history["valid/loss"].to_dict()
    assert list(store.curve(run, "valid/loss")) == list(range(1, 31))
    assert store.curve(run, "no/such") == {}
    store.uri = "https://user:secret@example.org/mlflow/"
    assert store.address == "https://example.org/mlflow"


def test_a_run_of_a_later_version(store: Runs) -> None:
    run = store.find("seed-1")
    assert run.tags["record.version"] == "1"
    store.client.set_tag(run.id, "record.version", "2")
    try:
        with pytest.raises(
            InputError, match=r"the run seed-1 \(\w{8}\) is of version 2; this code reads up to 1: take"
        ):
            store.find("seed-1")
    finally:
        store.client.set_tag(run.id, "record.version", "1")


def test_predictions_of_before_images_had_names() -> None:
    table = read_predictions("index,label,predicted,a,b\n7,a,b,0.2,0.8\n")
    assert list(table) == ["index", "source", "label", "predicted", "a", "b"]
    assert table["source"].tolist() == ["images.npy/7"]


@pytest.mark.parametrize("name", ["label", "label (class)"])  # of an earlier version, and of today
def test_a_class_may_have_the_name_of_a_column(store: Runs, name: str) -> None:
    table = read_predictions(f"index,source,label,predicted,{name},x\n7,a.png,label,x,0.2,0.8\n8,b.png,x,x,0.4,0.6\n")
    assert replace(store.find("seed-0"), predictions=table).shares().tolist() == [0.8, 0.6]
    assert table["label"].tolist() == ["label", "x"]


def test_classes_are_text() -> None:
    rows = ["0,07,NA,NA,0.5,0.2,0.3", "1,NA,01,1,0.5,0.2,0.3", "2,'=1,1,1.0,0.5,0.2,0.3"]
    table = read_predictions("\n".join(["index,source,label,predicted,NA,01,1", *rows]))
    assert table["source"].tolist() == ["07", "NA", "=1"]
    assert table["label"].tolist() == ["NA", "01", "1"]
    assert (table["label"] == table["predicted"]).tolist() == [True, False, False]
    assert table[["NA", "01", "1"]].to_numpy().tolist() == [[0.5, 0.2, 0.3]] * 3

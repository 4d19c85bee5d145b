"""MLflow brought to agree with DVC: with real experiments, a real remote and real stores."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages.base.errors import InputError
from stages.base.params import load_params
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker
from stages.tracking.writer import RunWriter
from stages.train import train
from tests.conftest import Project, free_port, runs, served
from tools import recorded
from tools.dvclock import as_yaml, read_params
from tools.recorded import RecordedResult
from tools.sync import Sync, is_of, main

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
TIES = ("dvc.exp_name", "dvc.baseline_rev", "mlflow.source.git.commit", "git.dirty")


def dvc(project: Project, *commands: str) -> None:
    """Run commands of DVC in one process, since it takes a second to start."""
    script = "import sys; from dvc.cli import main; sys.exit(any(main(command.split()) for command in sys.argv[1:]))"
    project("python", "-c", script, *commands)


@pytest.fixture(scope="module")
def original(make_project: Callable[[], Project], digits: Path) -> Project:
    """A copy with a committed result and the experiment seed-1, both run here and pushed for others."""
    project = make_project()
    project("git", "init", "-q", "--bare", f"{project.root}-hub")
    project("git", "remote", "add", "origin", f"{project.root}-hub")
    with (project.root / ".dvc/config").open("a") as config:  # whose last section is core
        config.write(f"    remote = storage\n['remote \"storage\"']\n    url = {project.root}-storage\n")
    # The one result in the history is this machine's own: another CPU may have made the one that the project commits.
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30", "epochs: 2")
    project("git", "commit", "-qa", "--amend", "-m", "a copy without results")
    shutil.copytree(digits, project.root / "data/prepared")  # as prepare makes it, which needs no run of its own here
    dvc(project, "commit -q -f prepare", "repro")
    project("git", "add", "-A")
    project("git", "commit", "-q", "-m", "results")
    project("git", "push", "-q", "origin", "HEAD")
    dvc(project, "exp run --temp --name seed-1 -S train.seed=1", "push -q", "exp push origin seed-1")
    return project


@pytest.fixture(scope="module")
def clone(original: Project) -> Project:
    """A colleague's clone, to which all has been pulled; MLflow has nothing there."""
    root = Path(f"{original.root}-clone")
    original("git", "clone", "-q", f"{original.root}-hub", str(root))
    project = Project.at(root)
    dvc(project, "pull -q", "exp pull origin seed-1")
    return project


@pytest.fixture(scope="module")
def rows(original: Project, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the original runs: of seed-1 and of the commit."""
    uri = f"sqlite:///{original.root}/mlflow.db"
    return [row(uri, run, tmp_path_factory.mktemp("row")) for run in runs(uri)]


def row(uri: str, run: Any, folder: Path) -> dict[str, Any]:
    """All that stands in a run, but for durations, ids and what the machine was."""
    client = mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(uri)
    client.download_artifacts(run.info.run_id, "", str(folder))
    [output] = run.outputs.model_outputs
    model = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {
            name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
            if not name.startswith("seconds/")
        },
        "data": sorted(
            (entry.tags[0].value, entry.dataset.name, entry.dataset.digest, entry.dataset.profile)
            for entry in run.inputs.dataset_inputs
        ),
        "scores": model(torch.tensor(IMAGES)).tolist(),
        "artifacts": {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "environment.json"
        },
        "ties": {name: run.data.tags.get(name) for name in TIES},
    }


def synced(
    project: Project, uri: str = "", only: tuple[str, ...] = (), dry_run: bool = False, deleted: bool = False
) -> dict[str, tuple[str, str]]:
    """Give results their runs in this process; return what became of each."""
    with contextlib.chdir(project.root):
        giver = Sync(Store.from_environment({"MLFLOW_TRACKING_URI": uri}), dry_run, deleted)
        results = recorded.named(only) if only else recorded.everything()
        return {result.name: giver.outcome(result) for result in results}


def sync(project: Project, *arguments: str) -> None:
    """Run the command in this process."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(project.root):
        patch.setattr(sys, "argv", ["", *arguments])
        main()


def last(project: Project) -> str:
    """The last commit with another dvc.lock."""
    return project("git", "log", "-1", "--format=%H", "--", "dvc.lock").strip()[:9]


def done(outcomes: dict[str, tuple[str, str]]) -> list[str]:
    return [outcome for outcome, _ in outcomes.values()]


def test_what_was_run_here_is_in_place(original: Project) -> None:
    before = [run.to_dictionary() for run in original.runs()]
    assert done(synced(original)) == ["in place"] * 3
    assert [run.to_dictionary() for run in original.runs()] == before


def test_a_commit_is_read_once(original: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    synced(original)
    monkeypatch.setattr(recorded, "at_commit", lambda commit: pytest.fail(f"{commit} is read again"))
    assert done(synced(original)) == ["in place"] * 3
    shutil.rmtree(original.root / ".dvc/tmp/commits")
    monkeypatch.undo()
    assert done(synced(original)) == ["in place"] * 3


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("mlartifacts/{run}/artifacts/weights", "weights"),  # earlier versions did not log them
        ("mlartifacts/{run}/artifacts/plots/pictures/confusion.png", "plots/pictures/confusion.png"),
        ("mlartifacts/models/{model}", "model"),
        ("mlartifacts", r"weights, params\.yaml, dvc\.yaml and \d+ more"),
    ],
)
def test_a_run_whose_files_are_gone_gets_them_back(
    original: Project, rows: list[dict[str, Any]], tmp_path: Path, gone: str, said: str
) -> None:
    run = next(run for run in original.runs() if run.info.run_name == "seed-1")
    before = run.to_dictionary()
    place = original.root / gone.format(run=run.info.run_id, model=run.outputs.model_outputs[0].model_id)
    shutil.move(place, tmp_path / "moved")
    planned = synced(original, only=("seed-1",), dry_run=True)
    assert planned["seed-1"][0] == "would be completed"
    assert re.fullmatch(f", run {run.info.run_id} lacked {said}", planned["seed-1"][1])
    assert not place.exists()
    assert synced(original, only=("seed-1",)) == {"seed-1": ("completed", planned["seed-1"][1])}
    assert synced(original, only=("seed-1",)) == {"seed-1": ("in place", "")}
    run = next(run for run in original.runs() if run.info.run_name == "seed-1")
    assert run.to_dictionary() == before
    assert row(f"sqlite:///{original.root}/mlflow.db", run, tmp_path / "row") == rows[0]
    assert done(synced(original)).count("completed") == (gone == "mlartifacts")


def test_a_model_that_was_deleted_in_mlflow_stays_deleted(original: Project) -> None:
    run = next(run for run in original.runs() if run.info.run_name == "seed-1")
    client = mlflow.MlflowClient(f"sqlite:///{original.root}/mlflow.db")
    [output] = run.outputs.model_outputs
    folder = original.root / f"mlartifacts/models/{output.model_id}"
    folder.rename(original.root / "kept")
    client.delete_logged_model(output.model_id)
    try:
        assert synced(original, only=("seed-1",)) == {"seed-1": ("in place", "")}
    finally:
        (original.root / "kept").rename(folder)
        with contextlib.closing(sqlite3.connect(original.root / "mlflow.db")) as connection, connection:
            connection.execute("update logged_models set lifecycle_stage = 'active'")


def test_pulled_results_get_the_rows_of_the_original(
    clone: Project, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sync(clone, "--dry-run")
    output = capsys.readouterr().out
    expected = ["seed-1: would be created", f"{last(clone)}: would be created", "workspace: would be in place"]
    assert output.splitlines() == [*expected, "in all: 2 would be created, 1 would be in place"]
    assert not list(clone.root.glob("ml*"))

    output = clone("python", "-m", "tools.sync")
    uri = f"sqlite:///{clone.root}/mlflow.db"
    experiment, commit = [row(uri, run, tmp_path / run.info.run_name) for run in clone.runs()]
    assert experiment == rows[0]
    recorded_at = int(clone("git", "log", "-1", "--format=%ct", experiment_ref(clone))) * 1000
    assert [clone.runs()[0].info.start_time, clone.runs()[0].info.end_time] == [recorded_at] * 2
    assert len(experiment["metrics"]["train/lr"]) == 2
    assert "git.patch" in experiment["artifacts"]
    # What the commit holds was run before there was the commit.
    assert commit["name"] == commit["ties"]["mlflow.source.git.commit"][:9] == last(clone)
    of_commit = {"name": commit["name"], "ties": commit["ties"]}
    assert commit == rows[1] | of_commit
    assert output.splitlines()[-1] == "in all: 2 created, 1 in place"

    before = [run.to_dictionary() for run in clone.runs()]
    assert done(synced(clone)) == ["in place"] * 3
    assert [run.to_dictionary() for run in clone.runs()] == before


@pytest.mark.slow
def test_a_server(clone: Project, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    port = free_port()
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    artifacts = ["--artifacts-destination", str(tmp_path / "served"), "--host", "127.0.0.1", "--port", str(port)]
    uri = f"http://127.0.0.1:{port}"
    with served(clone, *command, *artifacts, port=port, MLFLOW_DISABLE_TELEMETRY="true"):
        assert done(synced(clone, uri)) == ["created", "created", "in place"]
        assert row(uri, runs(uri)[0], tmp_path / "row") == rows[0]
        assert done(synced(clone, uri)) == ["in place"] * 3


def test_what_dvc_took_from_its_cache(original: Project, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    original("dvc", "exp", "run", "--temp", "--name", "again", "-S", "train.seed=1")
    assert len(original.runs()) == 2, "no stage ran, so nothing was logged"
    outcomes = synced(original)
    assert outcomes.pop("again")[0] == "created"
    assert done(outcomes) == ["in place"] * 3
    again = next(run for run in original.runs() if run.info.run_name == "again")
    ties = rows[0]["ties"] | {"dvc.exp_name": "again"}
    assert row(f"sqlite:///{original.root}/mlflow.db", again, tmp_path) == rows[0] | {"name": "again", "ties": ties}
    original("dvc", "exp", "remove", "-q", "again")


def test_a_run_that_was_not_evaluated_is_completed(
    clone: Project, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(clone.root)
    (tmp_path / "params.yaml").write_bytes(rows[0]["artifacts"]["params.yaml"])
    params = load_params(tmp_path / "params.yaml")
    environment = {
        "MLFLOW_TRACKING_URI": uri,
        "DVC_EXP_NAME": "seed-1",
        "DVC_EXP_BASELINE_REV": rows[0]["ties"]["dvc.baseline_rev"],
    }
    tracker = Tracker.from_environment(params, environment)
    train(params.train, Path("data/prepared"), tmp_path / "net", tmp_path / "train.csv", tracker)
    [trained] = runs(uri)
    before = trained.to_dictionary()
    planned = synced(clone, uri, ("seed-1",), dry_run=True)
    assert planned == {"seed-1": ("would be completed", f", run {trained.info.run_id}")}
    assert [run.to_dictionary() for run in runs(uri)] == [before]
    assert synced(clone, uri, ("seed-1",)) == {"seed-1": ("completed", f", run {trained.info.run_id}")}
    assert synced(clone, uri, ("seed-1",)) == {"seed-1": ("in place", "")}
    [completed] = runs(uri)
    assert completed.data.metrics["seconds/training"] == trained.data.metrics["seconds/training"]
    assert completed.data.tags["env.threads"] == "2"
    found = row(uri, completed, tmp_path / "row")
    for part in ("name", "status", "params", "metrics", "data", "scores"):
        assert found[part] == rows[0][part]
    assert found["artifacts"].items() <= rows[0]["artifacts"].items()


def test_missing_files_are_named_and_hold_up_nothing_else(clone: Project, original: Project, tmp_path: Path) -> None:
    bare = Project.at(tmp_path / "bare")
    clone("git", "clone", "-q", f"{original.root}-hub", str(bare.root))
    bare("git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    storage = Path(f"{original.root}-storage")
    lock = as_yaml(bare("git", "show", f"{experiment_ref(bare)}:dvc.lock").encode())
    digest = next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"].startswith("models"))
    stored = storage / "files/md5" / digest[:2] / digest[2:]
    stored.rename(tmp_path / "kept")
    try:
        outcomes = synced(bare)
    finally:
        (tmp_path / "kept").rename(stored)
    lacks = f", DVC's cache lacks models/net.safetensors, and so does the remote storage ({storage}). "
    assert outcomes["seed-1"] == ("skipped", f"{lacks}In the clone that has them: dvc exp push GIT_REMOTE seed-1")
    assert outcomes[last(bare)][0] == "created", "its files are in the remote"
    what, why = outcomes["workspace"]
    assert what == "skipped"
    assert why.startswith(", it is not what dvc.lock says (prepare, train, evaluate in dvc status); ")


def test_results_that_cannot_be_used_are_said_at_once_until_they_can(
    original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Project.at(tmp_path / "bare")
    original("git", "clone", "-q", f"{original.root}-hub", str(bare.root))
    bare("dvc", "remote", "remove", "storage")
    bare("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "no remote")
    first = synced(bare, only=("HEAD",))
    [[what, why]] = first.values()
    assert what == "skipped"
    assert ", DVC's cache lacks models/net.safetensors, data/prepared/dataset.json, plots, and no DVC remote" in why
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "at_commit", lambda commit: pytest.fail(f"{commit} is read again"))
        assert synced(bare, only=("HEAD",)) == first
    shutil.copytree(original.root / ".dvc/cache", bare.root / ".dvc/cache", dirs_exist_ok=True)
    assert done(synced(bare, only=("HEAD",))) == ["created"]


def experiment_ref(project: Project) -> str:
    return project("git", "for-each-ref", "--format=%(refname)", "refs/exps/??/*/seed-1").strip()


@pytest.fixture
def broken(clone: Project, tmp_path: Path) -> Project:
    """A clone with its cache, to do harm to."""
    project = Project.at(shutil.copytree(clone.root, tmp_path / "broken", symlinks=True))
    (project.root / "mlflow.db").unlink(missing_ok=True)
    project("git", "config", "user.name", "test")
    project("git", "config", "user.email", "test@localhost")
    return project


def test_results_that_are_not_those_of_the_params_or_the_code(broken: Project) -> None:
    broken.edit("params.yaml", "train:\n  seed: 0 ", "train:\n  seed: 7 ")
    what, why = synced(broken, only=("workspace",))["workspace"]
    assert (what, why[:60]) == ("skipped", ", it is not what dvc.lock says (train, evaluate in dvc statu")
    broken.edit("stages/report/pictures.py", '"""Pictures', '"""Drawings')
    broken("git", "commit", "-qam", "not run")
    outcomes = synced(broken, only=("HEAD", "seed-1"))
    why = ", committed without dvc repro: params.yaml: train, stages/report"
    assert synced(broken, only=("HEAD",)).popitem()[1] == ("skipped", why)
    assert outcomes == {
        broken("git", "rev-parse", "HEAD")[:9]: ("skipped", why),
        "seed-1": ("created", outcomes["seed-1"][1]),
    }


def test_weights_that_today_s_code_cannot_read(broken: Project) -> None:
    (broken.root / "models/net.safetensors").unlink()
    save_file({"weight": torch.zeros(3)}, broken.root / "models/net.safetensors", metadata={"another": "{}"})
    broken("dvc", "commit", "-q", "-f", "train", "evaluate")
    broken("git", "commit", "-qam", "other weights")
    outcomes = synced(broken)
    assert outcomes.pop(last(broken))[1].startswith(", models/net.safetensors does not say which net its weights")
    assert outcomes.pop("workspace")[0] == "skipped"
    assert done(outcomes) == ["created", "created"]


def test_one_failure_holds_up_nothing_else(clone: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = RunWriter.complete

    def fail_once(writer: RunWriter, *arguments: Any) -> str:
        if "dvc.exp_name" in writer.provenance.tags:
            raise TypeError("no such graph")
        return complete(writer, *arguments)

    monkeypatch.setattr(RunWriter, "complete", fail_once)
    outcomes = synced(clone, f"sqlite:///{tmp_path}/mlflow.db")
    assert outcomes["seed-1"] == ("failed", ", TypeError: no such graph")
    assert done(outcomes) == ["failed", "created", "in place"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(InputError, match=r"^1 failed of 3, see above$"):
        sync(clone)


def test_a_run_that_was_deleted_comes_back_on_request_only(clone: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert done(synced(clone, uri)) == ["created", "created", "in place"]
    client, before = mlflow.MlflowClient(uri), [run.to_dictionary()["data"] for run in runs(uri)]
    seed_1, commit = [run.info.run_id for run in runs(uri)]
    client.delete_run(seed_1)
    client.delete_run(commit)
    left = ("deleted in MLflow and left so", f", run {commit}; --deleted brings it back")
    outcomes = synced(clone, uri)
    assert outcomes["seed-1"] == (left[0], f", run {seed_1}; --deleted brings it back")
    assert [outcomes[last(clone)], outcomes["workspace"]] == [left, left]
    assert runs(uri) == []
    assert done(synced(clone, uri, ("seed-1",), dry_run=True, deleted=True)) == ["would be brought back"]
    assert runs(uri) == []
    assert done(synced(clone, uri, deleted=True)) == ["brought back", "brought back", "in place"]
    assert [run.to_dictionary()["data"] for run in runs(uri)] == before


def test_two_at_once_make_one_row(clone: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    both = [clone.start("python", "-m", "tools.sync", "seed-1", MLFLOW_TRACKING_URI=uri) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert len(runs(uri)) == 1
    assert sorted(text.splitlines()[0].split(",")[0] for text in printed) == ["seed-1: created", "seed-1: in place"]


def test_runs_of_killed_processes_are_completed_or_ended(
    clone: Project, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "params.yaml").write_bytes(rows[0]["artifacts"]["params.yaml"])
    # A journal would say how it ended; one can be lost.
    program = (
        "import os, sys, torch; from pathlib import Path; from stages.base.params import load_params;"
        "from stages.batches.prepared import DatasetInfo; from stages.tracking import provenance;"
        "from stages.tracking.datasets import dataset_record; from stages.tracking.journal import now;"
        "from stages.tracking.run import Start, started;"
        "from stages.tracking.store import Store; from stages.tracking.params import as_logged;"
        "origin = provenance.of_process(os.environ); data = DatasetInfo(Path('data/prepared'));"
        "tags = origin.tags | provenance.of_writer() | provenance.of_computation(torch.device('cpu'));"
        "params = as_logged(load_params(Path(sys.argv[1])).flat());"
        "datasets = [dataset_record(data, split) for split in ('train', 'valid')];"
        "started(Store.from_environment(), Start(tags, params, datasets, now()));"
        "os.kill(os.getpid(), 9)"
    )
    names = {"DVC_EXP_BASELINE_REV": rows[0]["ties"]["dvc.baseline_rev"], "MLFLOW_TRACKING_URI": uri}
    for name, params in (("seed-1", tmp_path / "params.yaml"), ("seed-1", clone.root / "params.yaml")):
        clone("python", "-c", program, str(params), fails=True, DVC_EXP_NAME=name, **names)
    other, begun = runs(uri)
    assert [run.info.status for run in (other, begun)] == ["RUNNING"] * 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        sync(clone, "seed-1", "--dry-run")
        dry = capsys.readouterr().out.splitlines()
        assert [run.info.status for run in runs(uri)] == ["RUNNING"] * 2
        sync(clone, "seed-1")
    assert dry[:2] == [
        f"seed-1: would be completed, run {begun.info.run_id}",
        f"run {other.info.run_id} (seed-1): would be ended as KILLED, its process is gone",
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"seed-1: completed, run {begun.info.run_id}",
        f"run {other.info.run_id} (seed-1): ended as KILLED, its process is gone",
        "in all: 1 completed",
    ]
    assert [run.info.status for run in runs(uri)] == ["KILLED", "FINISHED"]
    # Of the killed process, whose commit was not dirty; the rest is the result's.
    ties = rows[0]["ties"] | {"git.dirty": "false"}
    assert row(uri, runs(uri)[1], tmp_path / "row") == rows[0] | {"ties": ties}


def test_the_store_moves_with_the_project(broken: Project, tmp_path: Path) -> None:
    assert done(synced(broken)) == ["created", "created", "in place"]
    moved = Project.at(broken.root.rename(tmp_path / "Tom's C# 100%"))
    before = [run.to_dictionary() for run in moved.runs()]
    # In processes of their own: one of MLflow's remembers where a model was.
    names = ["seed-1", last(moved)]
    assert moved("python", "-m", "tools.sync").splitlines()[-1] == "in all: 3 in place"
    compared = moved("python", "-m", "tools.compare", *names)
    assert "on the same 359 test images" in compared
    assert not broken.root.exists(), "nothing is written to where it was"

    shutil.rmtree(moved.root / "mlartifacts")
    assert done(synced(moved, dry_run=True)) == ["would be completed", "would be completed", "would be in place"]
    assert moved("python", "-m", "tools.sync").splitlines()[-1] == "in all: 2 completed, 1 in place"
    assert moved("python", "-m", "tools.compare", *names) == compared
    after = [run.to_dictionary() for run in moved.runs()]
    assert [run["data"]["metrics"] for run in after] == [run["data"]["metrics"] for run in before]
    assert [run["outputs"] for run in after] == [run["outputs"] for run in before]


def test_a_store_that_cannot_be_reached(clone: Project) -> None:
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        synced(clone, "http://127.0.0.1:9")


def test_a_workspace_in_which_dvc_is_at_work(broken: Project) -> None:
    assert done(synced(broken, only=("workspace",))) == ["created"]
    process = broken.start("dvc", "repro", "--force", "--single-item", "train")
    assert process.stdout is not None
    assert process.stdout.readline() == "Running stage 'train':\n"
    what, why = synced(broken, only=("workspace",))["workspace"]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert (what, why) == ("skipped", ", DVC is at work in it; run this again when that has ended")


def test_names(clone: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as error:
        sync(clone, "seed-2")
    assert str(error.value).startswith(
        "no experiment or revision is called 'seed-2' (did you mean seed-1?); accepted: workspace, seed-1,"
    )
    with pytest.raises(SystemExit) as ended:
        sync(clone, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("    python -m tools.sync") == 3


def test_a_result_that_was_asked_for_and_cannot_be_used(broken: Project, capsys: pytest.CaptureFixture[str]) -> None:
    broken.edit("params.yaml", "train:\n  seed: 0 ", "train:\n  seed: 7 ")
    with pytest.raises(InputError, match=r"^1 skipped of 2, see above$"):
        sync(broken, "workspace", "seed-1")
    printed = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["workspace: skipped", "seed-1: created", "in all: 1 skipped"]


def test_params_of_other_code_are_taken_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train:\n  seed: 1\n  rate: 1e-3\n  net: {}\n")
    assert read_params(tmp_path / "params.yaml") == {"train.seed": 1, "train.rate": 1e-3, "train.net": {}}


def test_commits_with_one_result_are_one_and_branches_count(broken: Project) -> None:
    before = last(broken)
    lock = (broken.root / "dvc.lock").read_text()
    (broken.root / "dvc.lock").write_text(lock + "# the same\n")
    broken("git", "commit", "-qam", "another digest of some code")
    here = last(broken)
    broken("git", "checkout", "-q", "-b", "other")
    (broken.root / "dvc.lock").write_text(re.sub(r"(net.safetensors\n.*\n *md5: ).", r"\g<1>x", lock))
    broken("git", "commit", "-qam", "other weights")
    there = last(broken)
    broken("git", "checkout", "-q", "-")
    broken("git", "rm", "-q", "dvc.lock")
    broken("git", "commit", "-qm", "no results")
    with contextlib.chdir(broken.root):
        names = [result.name for result in recorded.everything()]
    assert before not in names
    assert names == ["seed-1", here, there, "workspace"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        # As dvc push leaves it, where the remote keeps versions of files.
        (
            r"(path: data/prepared\n *hash: md5\n)( *)md5: \w+\.dir\n",
            r"\1\2files:\n\2- relpath: images.npy\n\2  md5: 0a\n\2  size: 1\n",
            True,
        ),
        (r"(?s)stages:.*", "stages:\n", False),
        (r"(?s)stages:.*", "stages: [evaluate]\n", False),
    ],
)
def test_a_dvc_lock_in_another_form_holds_up_nothing(broken: Project, old: str, new: str, found: bool) -> None:
    lock = (broken.root / "dvc.lock").read_text()
    (broken.root / "dvc.lock").write_text(re.sub(old, new, lock))
    broken("git", "commit", "-qam", "another form")
    here = last(broken)
    (broken.root / "dvc.lock").write_text(lock)
    broken("git", "commit", "-qam", "as before")
    outcomes = synced(broken)
    assert (here in outcomes) == found
    assert "failed" not in {str(outcome) for outcome, _ in outcomes.values()}, outcomes


def test_experiments_of_one_name_from_different_commits_are_two(original: Project) -> None:
    [run] = [run for run in original.runs() if run.info.run_name == "seed-1"]
    baseline = run.data.tags["dvc.baseline_rev"]
    assert is_of(RecordedResult("seed-1", "0" * 40, baseline), run)
    assert not is_of(RecordedResult("seed-1", "0" * 40, "0" * 40), run)
    assert not is_of(RecordedResult("seed-2", "0" * 40, baseline), run)
    assert is_of(RecordedResult("012345678", "0" * 40), run)


def test_a_repository_without_commits(tmp_path: Path) -> None:
    Project.at(tmp_path)("git", "init", "-q")
    with contextlib.chdir(tmp_path):
        assert recorded.everything() == [RecordedResult("workspace")]
    with contextlib.chdir(tmp_path), pytest.raises(InputError, match="no experiment or revision is called 'HEAD'"):
        recorded.named(["HEAD"])

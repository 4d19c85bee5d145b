"""The house is tidied: with a real DVC and a real store of MLflow."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from stages.base import instructions
from stages.base.errors import InputError
from stages.base.processes import thread_count
from stages.tracking.result import EVALUATION_TAG, TAKEN_UP_TAG, TIDIED_TAG, WEIGHTS_TAG
from stages.tracking.store import Store
from tests.conftest import ROOT, Project, clean_environment
from tests.tools.test_rebuild import BACK, OWN, experiment, with_a_result
from tools import commits, recorded, sync
from tools.commits import cached, list_of, still_missing
from tools.dvclock import as_yaml, digests_in, digests_of, weights_digest
from tools.runs import Runs
from tools.tidy import __main__ as command
from tools.tidy import again, busy
from tools.tidy.again import other_bits
from tools.tidy.house import House, data_of, freed, shown

TIDY = ("python", "-m", "tools.tidy")
PINS = "refs/repronet/tidied"


def test_bytes_that_stay_by_another_name_are_not_freed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file").write_bytes(b"1" * 1000)
    (folder / "linked").write_bytes(b"2" * 100)
    os.link(folder / "linked", tmp_path / "other")
    (folder / "link").symlink_to(tmp_path / "other")
    link = len(str(tmp_path / "other"))
    assert freed(folder) == 1000 + link
    assert [shown(size) for size in (999, 66_000, 2_500_000_000)] == ["999 B", "66.0 kB", "2.5 GB"]


@pytest.mark.parametrize(
    ("words", "is_at_work"),
    [
        (["dvc", "repro"], True),
        (["/a folder/bin/python3.11", "/a folder/bin/dvc", "exp", "run"], True),
        (["/venv/bin/python", "-P", "-m", "dvc", "exp", "run"], True),
        (["python", "-m", "stages", "train", "data/prepared"], True),
        (["python", "-m", "stages.evaluate", "a", "b"], True),
        (["python", "-m", "tools.sweep", "-S", "train.seed=1,2"], True),
        (["python", "-m", "tools.compare", "a", "b"], False),
        (["vim", "dvc.yaml"], False),
        (["vim", "dvc"], False),
        (["git", "add", "stages"], False),
        (["python", "-m"], False),
        ([], False),
    ],
)
def test_who_is_at_work(words: list[str], is_at_work: bool) -> None:
    assert busy.is_at_work(words) == is_at_work


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("from stages.base.locks import locked\nwith locked(Path('{0}/net')):", r"process \d+ "),
        ("from filelock import FileLock\nwith FileLock('{0}/sweeps/lr/lock'):", "the sweep lr"),
    ],
)
def test_nothing_goes_while_somebody_writes(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps/lr").mkdir(parents=True)
    busy.check_idle()
    code = "import sys\nfrom pathlib import Path\n" + code.format(tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", f"{code}\n    print('locked', flush=True)\n    sys.stdin.read()"],
        cwd=ROOT,
        env=clean_environment() | {"DVC_ROOT": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"^{said}.*is at work in this repository"):
        busy.check_idle()
    writer.communicate()
    busy.check_idle()


def test_digests_are_read_as_yaml_has_them() -> None:
    text = (ROOT / "dvc.lock").read_text()
    for kind in ("deps", "outs"):
        found = digests_in(text, kind)
        assert list(found) == ["prepare", "train", "evaluate"]
        assert {path: digest for stage in found.values() for path, digest in stage.items()} == digests_of(
            as_yaml(text.encode()), kind
        )
    assert weights_digest(text) == digests_of(as_yaml(text.encode()), "outs")["models/net.safetensors"]
    assert weights_digest(text.replace("      hash: md5\n", "")) == "", "DVC 2 computed another"
    assert digests_in("<<<<<<< HEAD", "outs") == {}


def test_a_digest_may_be_longer_than_the_name_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert still_missing({"data": "0" * 400}) == ["data"], "as dvc.lock has it where a remote keeps versions"


def test_data_are_what_stages_read_and_did_not_make() -> None:
    text = (ROOT / "dvc.lock").read_text()
    read, found = digests_of(as_yaml(text.encode()), "deps"), data_of(text)
    assert {read["data/excluded.csv"], read["data/weights/none"], read["stages/nets"]} <= {*found}
    assert not {read["data/prepared"], read["models/net.safetensors"]} & {*found}


def test_another_user_may_have_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".repronet/tidy.lock").mkdir(parents=True)  # which cannot be opened, by whomever
    with busy.entering():
        pass
    with pytest.raises(InputError, match=r"^the lock that others wait for cannot be had: .*tidy\.lock"), busy.alone():
        pass


def test_which_bits_would_be_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    import torch

    from stages.tracking.environment import cpu_flags, packages

    system = platform.platform()
    recorded: dict[str, Any] = {"packages": packages(), "gpu": {}, "os": system, "cpu": {"flags": cpu_flags()}}
    own = {"python": platform.python_version(), "torch": torch.__version__, "cpu": "another"}
    own |= {"cpu_capability": "AVX2", "device": "cpu", "threads": "2"}
    params = {"prepare.source": "digits", "train.determinism": "portable", "train.threads": "2"}
    unknown = "that do not say what they were made with"

    def said(params: dict[str, str], other: dict[str, str] | None = None, **changes: str | None) -> str:
        (tmp_path / "environment.json").write_text(json.dumps(recorded))
        tags = {f"env.{name}": value for name, value in (own | changes).items() if value is not None}
        return other_bits(tags | (other or {}), params, tmp_path)

    assert said(params) == ""
    for name in ("python", "torch", "cpu", "device", "threads"):
        assert said(params, **{name: None}) == unknown
    assert said(params, torch="2.0") == "made with other versions than here: torch 2.0"
    for capability in ("DEFAULT", None):
        assert said(params, cpu_capability=capability) == "made on another CPU: another", "made without AVX2, or on ARM"
    assert said(params | {"train.determinism": "machine"}) == "made on another CPU: another"
    assert said(params | {"train.determinism": "off"}).endswith("train.determinism is off")
    assert said({"prepare.source": "digits"}).endswith("train.determinism is off"), "made before there were levels"
    here = thread_count("auto")
    assert (
        said(params | {"train.threads": "auto"}, threads="1000")
        == f"made with 1000 threads, and not with {here} as here"
    )
    assert said(params | {"train.threads": "auto"}, threads=str(here)) == ""
    for tag in ("training", TAKEN_UP_TAG, "resumed.epoch"):
        assert said(params, {tag: "1"}).startswith("of several processes")
    assert said(params | {"train.processes": "2"}).startswith("of several processes")
    for source in ("mine", "fashion_mnist"):
        assert said(params | {"prepare.source": source, "prepare.path": "data/none"}).startswith(f"of {source}, whose")
    assert said(params | {"prepare.source": "fashion_mnist", "prepare.path": "data/raw/fashion"}) == ""
    assert said(params, device="H0") == "made on H0, with other drivers than here, or none"
    for name, version, reason in (
        ("filelock", "1.0", "made with other versions than here: filelock 1.0"),
        ("gone", "7", "made with other versions than here: gone 7"),
        ("ruff", "0", ""),
    ):
        recorded["packages"] = packages() | {name: version}
        assert said(params) == reason
    recorded["packages"] = packages()
    # What a GPU is called stands in for one here: which device `auto` takes follows from whether there is any.
    monkeypatch.setattr(again, "_gpu", lambda: {"name": "H0", "driver": "1"})
    assert said(params | {"train.device": "auto"}) == "made on a CPU, where train.device: auto takes a GPU here"
    assert said(params | {"train.device": "cpu"}) == ""
    recorded["gpu"] = {"name": "H0", "driver": "1"}
    assert said(params, device="H0", cpu=instructions.cpu_model()) == ""
    recorded["gpu"] = {"name": "H0", "driver": "2"}
    assert said(params, device="H0", cpu=instructions.cpu_model()).startswith("made on H0")
    recorded["gpu"] = {"name": "H0", "driver": "1"}
    recorded["cpu"] = {"flags": ["avx2"]}
    assert said(params, device="H0", cpu=instructions.cpu_model()).startswith("made on another CPU"), "of the same name"
    recorded["os"] = "Linux-6.1-x86_64-with-glibc2.17"
    assert said(params | {"train.device": "cpu"}) == "made with other versions than here: system glibc2.17"
    recorded["os"] = system
    stored = {"prepare.shards_to": "s3://bucket", "train.device": "cpu"}
    assert said(params | stored) == "whose images are in a storage, which may lose them"
    del recorded["packages"]
    assert said(params) == unknown


@pytest.fixture(scope="module")
def original(make_project: Callable[[], Project]) -> Project:
    """A project with a run of its commit, and three experiments, one of own images that DVC keeps."""
    project = with_a_result(make_project())
    for name, changes in (("own", OWN), ("seed-1", ["train.seed=1"]), ("seed-2", ["train.seed=2"])):
        experiment(project, name, *changes)
    return project


@pytest.fixture
def house(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it, in which this process is; of its runs one goes with `--keep 1`."""
    project = copy_of(original, tmp_path / "a project")
    monkeypatch.chdir(project.root)
    return project


def copy_of(project: Project, folder: Path) -> Project:
    """A copy of a project, whose runs say that they were made there."""
    copy = Project.at(Path(shutil.copytree(project.root, folder, symlinks=True)))
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("UPDATE tags SET value = ? WHERE key = 'directory'", (str(folder),))
    return copy


class Seen:
    """What tidy would do."""

    def __init__(self, keep: int = 1) -> None:
        self.house = House(keep)
        self.lines = list(self.house.lines())
        self.models = {line.split()[1] for line in self.lines if line.startswith("model  ")}
        self.goes = not self.house.is_tidy
        self.cache_goes = any(re.match("cache  [1-9]", line) for line in self.lines)


def going(project: Project) -> Any:
    """The run that goes: the worse of two experiments on digits."""
    [name] = Seen().models
    [run] = [run for run in project.runs() if run.info.run_name == name]
    return run


def client_of(project: Project) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def files(project: Project) -> dict[str, int]:
    """The sizes of the files in the store and in DVC's cache, by their paths."""
    places = [project.root / "mlartifacts", project.root / ".dvc/cache/files"]
    found = [path for place in places for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(project.root)): path.stat().st_size for path in found}


def artifacts(project: Project, run: Any) -> Path:
    return Path(project.root, "mlartifacts", run.info.run_id, "artifacts")


def commit_of(project: Project, name: str) -> str:
    return project("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").strip()


def lock_of(project: Project, name: str) -> str:
    """The dvc.lock of an experiment."""
    return project("git", "show", f"{commit_of(project, name)}:dvc.lock")


@pytest.mark.slow
def test_what_was_tidied_is_rebuilt(house: Project) -> None:
    project, before = house, files(house)
    lost = going(project)
    name = lost.info.run_name
    kept = {"seed-1": "seed-2", "seed-2": "seed-1"}[name]
    assert "no terminal" in project(*TIDY, fails=True)
    said = project(*TIDY, "--keep", "1", "--dry-run")
    assert f"model  {name} (" in said
    assert said.count("kept: 1 of the 1 best by validation on") == 2, "own images are others"
    assert files(project) == before

    assert "deleted; " in project(*TIDY, "--keep", "1", "--yes")
    after = files(project)
    gone = sum(size for path, size in before.items() if path not in after)
    assert f"in all {shown(gone)}\n" in said
    assert after.items() <= before.items()
    assert {path.split("/")[0] for path in before.keys() - after.keys()} == {"mlartifacts", ".dvc"}
    assert "there is nothing to delete" in project(*TIDY, "--keep", "1", "--yes")
    [run] = [run for run in project.runs() if run.info.run_id == lost.info.run_id]
    assert run.data.tags[TIDIED_TAG] == time.strftime("%Y-%m-%d")
    assert (run.data.metrics, run.data.params) == (lost.data.metrics, lost.data.params)
    assert run.data.tags["mlflow.source.git.commit"] in project("git", "for-each-ref", PINS)
    assert name in project("dvc", "exp", "show", "--csv")
    assert "up to date" in project("dvc", "status")
    assert "missing" in project("dvc", "exp", "apply", name, fails=True)
    project("dvc", "exp", "apply", kept)
    assert "up to date" in project("dvc", "status")
    project(*BACK)
    project("dvc", "checkout", "-q")

    store = Runs()
    with pytest.raises(InputError, match=f"python -m tools.rebuild {run.info.run_id} brings them back"):
        store.weights(store.find(name), Path())
    said = project("python", "-m", "tools.sync")
    assert f"{name}: in place\n" in said
    assert files(project) == after, "it stays tidied"

    # Another evaluation than it has, as later code's may be, is no hindrance.
    client_of(project).set_tag(run.info.run_id, EVALUATION_TAG, "0" * 64)
    left = project.root / ".repronet/rebuild/killed"
    left.mkdir(parents=True)
    said = project("python", "-m", "tools.rebuild", name, fails=True)
    assert "different: files of the evaluation\n" in said
    assert "there again: its weights and model in MLflow" in said
    assert "models/net.safetensors" in said.split("there again: ")[2]
    assert not left.exists()
    back = files(project)
    assert back.keys() == before.keys()
    assert {path: size for path, size in back.items() if "/models/" not in path}.items() <= before.items()
    [run] = [run for run in project.runs() if run.info.run_id == lost.info.run_id]
    assert not [tag for tag in run.data.tags if tag.startswith(TIDIED_TAG)]
    project("dvc", "exp", "apply", name)
    assert "up to date" in project("dvc", "status")


@pytest.mark.slow
def test_what_a_run_says_of_itself(house: Project) -> None:
    run, client = going(house), client_of(house)
    for tag, value, reason in (
        ("env.device", "", "that do not say what they were made with"),
        ("env.torch", "2.0.0", "made with other versions than here: torch 2.0.0"),
        ("mlflow.user", "another", "of another user, another"),
        ("mlflow.user", "", "of another user, "),
        ("directory", "/another clone", "made in another folder than this project's"),
        ("mlflow.source.git.commit", "0" * 40, "whose commit is not in this repository"),
        ("mlflow.source.git.commit", "", "logged without a commit"),
        ("git.untracked", "large.bin", "with new files that were too large for their record"),
        ("record.version", "99", "of other code"),
        ("record.version", "x", "of other code"),
        ("weights.sha256", "0" * 64, "whose weights are others than their tag or their dvc.lock names"),
    ):
        before = run.data.tags.get(tag)
        client.set_tag(run.info.run_id, tag, value)
        seen = Seen()
        assert not seen.goes
        assert f"kept: 1 {reason}" in seen.lines
        client.delete_tag(run.info.run_id, tag)
        if before is not None:
            client.set_tag(run.info.run_id, tag, before)
    for table, column, name, reason in (
        ("latest_metrics", "key", "seconds/training", "whose training was not seen to its end"),
        ("inputs", "destination_type", "MODEL_OUTPUT", "without a model"),
    ):
        for values in (("another", name), (name, "another")):
            with closing(sqlite3.connect("mlflow.db")) as database, database:
                database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", values)
            assert (f"kept: 1 {reason}" in Seen().lines) == (values[1] == name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("getpass.getuser", lambda: "")
        client.set_tag(run.info.run_id, "mlflow.user", "")
        assert "kept: 1 of another user, " in Seen().lines, "two of no name may be two"


@pytest.mark.slow
def test_what_a_run_was_made_of(house: Project) -> None:
    run = going(house)
    place = artifacts(house, run)
    weights = "whose weights are others than their tag or their dvc.lock names"
    digest = weights_digest((place / "dvc.lock").read_text())
    for file, old, new, reason in (
        ("git.patch", "", None, "of other files than their commit's, without a patch"),
        ("git.patch", "-  seed: 0", "-  seed: 7", "whose patch does not fit their commit"),
        ("git.patch", "+  seed: ", "+  seed: 3", "whose params.yaml is not the one of their commit and patch"),
        ("params.yaml", "", None, "without params.yaml"),
        ("dvc.lock", "path: stages/base\n", "path: stages/nowhere\n", "stages/nowhere as it was"),
        ("dvc.lock", "  prepare:\n", "  another:\n", "whose dvc.lock has other stages than today's"),
        ("dvc.lock", digest, "0" * 32, weights),
        ("plots/predictions.csv", "", None, "without plots/predictions.csv"),
        ("weights/net.safetensors", "__metadata__", "__metadatA__", weights),
        ("weights/net.safetensors", "", None, "that have not one file of weights"),
    ):
        path = place / file
        before = path.read_bytes()
        if new is None:
            path.unlink()
        else:
            assert old.encode() in before
            path.write_bytes(before.replace(old.encode(), new.encode(), 1))
        seen = Seen()
        assert not seen.goes, reason
        assert any(line.startswith("kept: 1 ") and line.endswith(reason) for line in seen.lines), (reason, seen.lines)
        path.write_bytes(before)
    weights_file, lock = place / "weights/net.safetensors", place / "dvc.lock"
    before, locked = weights_file.read_bytes(), lock.read_text()
    later = before.replace(b'\\"version\\": 3', b'\\"version\\": 9')
    assert later != before
    weights_file.write_bytes(later)
    lock.write_text(locked.replace(digest, hashlib.md5(later).hexdigest()))
    client_of(house).set_tag(run.info.run_id, WEIGHTS_TAG, hashlib.sha256(later).hexdigest())
    assert "kept: 1 whose weights today's code does not read" in Seen().lines
    weights_file.write_bytes(before)
    lock.write_text(locked)
    client_of(house).set_tag(run.info.run_id, WEIGHTS_TAG, run.data.tags[WEIGHTS_TAG])
    (place / "weights/other.safetensors").write_bytes(b"")
    assert "kept: 1 that have not one file of weights" in Seen().lines
    (place / "weights/other.safetensors").unlink()
    assert Seen().goes


@pytest.mark.slow
def test_what_needs_a_run(house: Project) -> None:
    run, client = going(house), client_of(house)
    name = run.info.run_name
    Path("sweeps/lr").mkdir(parents=True)
    client.set_tag(run.info.run_id, "sweep", "lr")
    assert "kept: 1 of sweep lr, as long as sweeps/lr is there" in Seen().lines
    client.delete_tag(run.info.run_id, "sweep")
    client.create_registered_model("digits")
    version = client.create_model_version("digits", f"models:/{run.outputs.model_outputs[0].model_id}")
    assert "kept: 1 registered in MLflow" in Seen().lines, "without alias and run"
    client.delete_model_version("digits", version.version)
    client.set_terminated(run.info.run_id, "KILLED")
    assert "kept: 1 that have not ended well" in Seen().lines
    client.set_terminated(run.info.run_id, "FINISHED")
    assert Seen(keep=3).models == set()
    assert Seen().models == {name}
    client.delete_run(run.info.run_id)
    assert not Seen().goes, "of deleted runs nothing goes"
    client.restore_run(run.info.run_id)

    text = lock_of(house, name)
    Path("another project").mkdir()
    Path("another project/dvc.lock").write_text(text)
    house("git", "add", "another project")
    seen = Seen()
    assert "kept: 1 whose weights a commit of a branch or tag names, or the workspace" in seen.lines, "in a nested one"
    assert not seen.goes


@pytest.mark.slow
@pytest.mark.parametrize("where", ["stash", "queue", "reflog", "merge", "run", "deleted", "other", "experiment"])
def test_outputs_that_something_else_names_stay(where: str, house: Project) -> None:
    run = going(house)
    lock = Path("dvc.lock")
    before, text = lock.read_text(), lock_of(house, run.info.run_name)
    assert Seen().cache_goes
    if where == "other":  # a run of another of MLflow's experiments
        (place := Path("mlartifacts", "0" * 32, "artifacts")).mkdir(parents=True)
        (place / "dvc.lock").write_text(text)
    elif where in ("run", "deleted"):  # the champion, say, by a dvc repro of which git knows nothing
        [best] = [
            each
            for each in house.runs()
            if each.info.run_name.startswith("seed") and each.info.run_id != run.info.run_id
        ]
        (artifacts(house, best) / "dvc.lock").write_text(text)
        if where == "deleted":
            client_of(house).delete_run(best.info.run_id)
    elif where == "experiment":  # the commit of the run's experiment has the same weights, of other data
        data = digests_in(text, "outs")["prepare"]["data/prepared"]
        lock.write_text(text.replace(data, "0" * 32 + ".dir"))
        tree = house("git", "stash", "create").strip()
        [ref] = house("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{run.info.run_name}").split()
        house("git", "update-ref", ref, tree)
        lock.write_text(before)
    else:
        lock.write_text("<<<<<<< HEAD\n" * (where == "merge") + text)
    if where == "stash":
        house("git", "stash", "-q")
    if where == "queue":
        house("dvc", "exp", "run", "--queue", "-S", "train.seed=5")
        lock.write_text(before)
    if where == "reflog":
        house("git", "commit", "-qam", "of no branch soon")
        house("git", "reset", "-q", "--hard", "HEAD~1")
    seen = Seen()
    assert seen.goes == (where != "merge"), "what the workspace has is needed"
    assert not seen.cache_goes


@pytest.mark.slow
def test_data_are_compared_with_what_dvc_keeps(house: Project) -> None:
    """The run of own images goes where another is better; its images are in DVC's cache alone."""
    [own] = [run for run in house.runs() if run.info.run_name == "own"]
    assert own.info.run_name not in Seen().models
    client = client_of(house)
    digits = next(run for run in house.runs() if run.info.run_name == "seed-1")
    # As if a run of the same images were better.
    tags = {tag: value for tag, value in digits.data.tags.items() if tag.startswith(("evaluation", "weights"))}
    better = client.create_run(own.info.experiment_id, tags=tags)
    for dataset in own.inputs.dataset_inputs:
        client.log_inputs(better.info.run_id, [dataset])
    for metric in ("best/valid_accuracy", "best/valid_loss"):
        client.log_metric(better.info.run_id, metric, 1.0)
    client.set_terminated(better.info.run_id)
    assert "own" in Seen().models
    digest = re.findall("md5: ([0-9a-f]{32}.dir)", Path("data/raw/own.dvc").read_text())[0]
    prepared = digests_in((artifacts(house, own) / "dvc.lock").read_text(), "outs")["prepare"]["data/prepared"]
    lacks = "kept: 1 for which neither git nor DVC's cache has data/raw/own as it was"
    for folder, is_there, reason in (
        (digest, False, lacks),
        (digest, True, lacks),
        (prepared, True, "kept: 1 of which DVC's cache has not all of data/prepared"),
    ):
        kept = cached(next(iter(list_of(folder).values())))
        content = kept.read_bytes()
        kept.rename("aside")
        if is_there:
            kept.write_bytes(content[:-1] + b"?")
        commits.is_intact.cache_clear()  # each command looks once
        commits.file_digests.cache_clear()
        seen = Seen()
        assert "own" not in seen.models
        assert reason in seen.lines
        kept.unlink(missing_ok=True)
        kept.write_bytes(content)
    commits.is_intact.cache_clear()
    commits.file_digests.cache_clear()
    assert "own" in Seen().models
    House(1).remove()
    shutil.rmtree("data/raw/own")  # and, below, its list: it is not prepared anew
    Path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}").unlink()
    # An evaluation that fails, as matplotlib refuses this, is no hindrance.
    said = house("python", "-m", "tools.rebuild", "own", fails=True, MPLBACKEND="nonsense")
    assert "cannot be rebuilt: a stage failed:" in said
    assert "its prepared data are those of DVC's cache" in said
    assert "there again: its weights and model in MLflow" in said
    assert "there again: metrics/train.csv, models/net.safetensors in DVC's cache" in said
    seen = Seen()
    lost = f"it lacks the lists of 1 folders, such as {digest}"
    assert f"DVC's cache is left alone: of data that .dvc files name {lost}" in seen.lines
    assert not seen.cache_goes


@pytest.mark.slow
def test_unusual_places_are_left_alone(house: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import commits

    def refused(reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            House(1)

    house("git", "worktree", "add", "-q", str(tmp_path / "other"))
    refused("^there are several worktrees")
    house("git", "worktree", "remove", str(tmp_path / "other"))
    house("dvc", "cache", "dir", "--local", str(tmp_path / "shared"))
    shutil.copytree(".dvc/cache", tmp_path / "shared")
    commits._cache.cache_clear()
    seen = Seen()
    assert f"DVC's cache is left alone: it is outside of this project: {tmp_path}/shared" in seen.lines
    assert (len(seen.models), seen.cache_goes) == (1, False)
    house("dvc", "config", "--local", "--unset", "cache.dir")
    commits._cache.cache_clear()
    house("dvc", "config", "cache.dir", ".dvc/cache")  # where it would be anyway, as for clones that share it
    assert "DVC's cache is left alone: others may use it: DVC's configuration has cache.dir" in Seen().lines
    house("git", "checkout", "-q", "--", ".dvc/config")
    Path(".git/shallow").write_text(house("git", "rev-parse", "HEAD"))
    refused("^this clone has but a part of its commits and their files")
    Path(".git/shallow").unlink()
    Path(".git/objects/info/alternates").write_text(str(tmp_path))
    refused("^this clone has its commits from another one")
    Path(".git/objects/info/alternates").unlink()
    assert Seen().cache_goes
    Path("mlartifacts").rename(tmp_path / "artifacts of many")
    Path("mlartifacts").symlink_to(tmp_path / "artifacts of many")
    refused(f"^{tmp_path}/artifacts of many is not in this project")
    Path("mlartifacts").unlink()
    (tmp_path / "artifacts of many").rename("mlartifacts")
    shutil.copy("mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    refused("is not in this project, so others may need what it has$")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    refused("^MLflow at http://127.0.0.1:1 cannot be read")


@pytest.mark.slow
def test_a_commit_of_no_branch_is_pinned(house: Project) -> None:
    run = going(house)
    commit = run.data.tags["mlflow.source.git.commit"]
    House(1).remove()
    house("git", "checkout", "-q", "--orphan", "anew")
    house("git", "commit", "-qm", "all in one")
    house("git", "branch", "-qD", "master")
    for ref in house("git", "for-each-ref", "--format=%(refname)", "refs/exps").split():
        house("git", "update-ref", "-d", ref)
    house("git", "reflog", "expire", "--expire=now", "--all")
    house("git", "gc", "-q", "--prune=now")
    assert house("git", "cat-file", "-t", commit).strip() == "commit"


@contextmanager
def copied(project: Project, folder: Path) -> Iterator[Project]:
    """A copy of a project, in which this process is meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it to the store that was used last
        copy = copy_of(project, folder)
        patch.chdir(folder)
        yield copy
        os.environ.pop("MLFLOW_TRACKING_URI", None)


class KilledAt:
    """Lets nothing be done any more after so many changes to store and disk."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def change(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return do(*arguments, **named)

        return changed


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing(house: Project, tmp_path: Path) -> None:
    run, before = going(house), files(house)
    with copied(house, tmp_path / "not killed") as copy:
        House(1).remove()
        expected = files(copy)
    gone = before.keys() - expected.keys()
    n_cached = sum(path.startswith(".dvc") for path in gone)
    # The tag, a file of the cache, all of them, the model, the weights, some of what is deleted then.
    for moment in (0, 1, 2, 1 + n_cached, 2 + n_cached, 3 + n_cached, 5 + n_cached):
        with copied(house, tmp_path / str(moment)) as copy:
            tidy, killed = House(1), KilledAt(moment)
            with pytest.MonkeyPatch.context() as patch:
                for name in ("unlink", "rename"):
                    patch.setattr(os, name, killed.change(getattr(os, name)))
                patch.setattr(mlflow.MlflowClient, "log_batch", killed.change(mlflow.MlflowClient.log_batch))
                with pytest.raises(KeyboardInterrupt):
                    tidy.remove()
            there, tags = files(copy), client_of(copy).get_run(run.info.run_id).data.tags
            assert expected.keys() <= there.keys(), "nothing else goes"
            assert (TIDIED_TAG in tags) == (moment > 0), "what may have lost a file says so"
            assert (there == before) == (moment < 2)
            weights = f"mlartifacts/{run.info.run_id}/artifacts/weights/net.safetensors"
            assert (weights in there) == (moment < 3 + n_cached), "they go last: by them the rest is found"
            assert tags["mlflow.source.git.commit"] in copy("git", "for-each-ref", PINS)
            [result] = [each for each in recorded.experiments() if each.name == run.info.run_name]
            assert sync.Sync(Store.from_environment(), dry_run=False).outcome(result)[0] == sync.Outcome.PRESENT
            if moment == 2 + n_cached:  # the model has gone, but not the weights
                assert "there again: " in copy("python", "-m", "tools.rebuild", run.info.run_name)
                assert files(copy).keys() >= before.keys()
                assert TIDIED_TAG not in client_of(copy).get_run(run.info.run_id).data.tags
            copy(*TIDY, "--keep", "1", "--yes")
            assert files(copy) == expected
            assert House(1).is_tidy


@pytest.mark.slow
def test_others_wait_or_are_refused_while_it_removes(house: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "WAIT_SECONDS", 0.1)
    with busy.alone():
        assert "Unable to acquire lock" in house("dvc", "repro", fails=True)
        with pytest.raises(InputError, match=r"tools\.tidy is at work in this repository"), busy.entering():
            pass
        monkeypatch.setattr("sys.argv", ["sync"])
        with pytest.raises(InputError, match=r"tools\.tidy is at work in this repository"):
            sync.main()
    with busy.entering():
        assert "up to date" in house("dvc", "repro")


@pytest.mark.slow
def test_nothing_goes_while_dvc_works(house: Project) -> None:
    process = house.start("dvc", "exp", "run", "--temp", "-S", "train.epochs=2000", "-S", "train.seed=9")
    deadline = time.monotonic() + 60
    while not list(Path(".repronet/locks").glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        said = house(*TIDY, "--yes", fails=True)
        assert "is at work in this repository. Let it end" in said
        assert len(said.splitlines()) == 1
        assert "in all " in house(*TIDY, "--keep", "1", "--dry-run"), "which only looks"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["y", "", "registered", "other weights", "branch"])
def test_it_asks_first(
    answer: str, house: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = files(house), going(house)

    def asked(question: str) -> str:
        assert files(house) == before
        assert run.info.run_name in capsys.readouterr().out, "the list comes before the question"
        assert question == "delete these? [y/N] "
        if answer == "registered":
            client_of(house).create_registered_model("digits")
            client_of(house).create_model_version("digits", f"runs:/{run.info.run_id}/net")
        if answer == "other weights":
            path = artifacts(house, run) / "weights/net.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        if answer == "branch":
            house("git", "branch", "kept", commit_of(house, run.info.run_name))
        return "y" if answer else ""

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.argv", ["tidy", "--keep", "1"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    if answer in ("y", ""):
        command.main()
    else:
        with pytest.raises(
            InputError, match=f"^{run.info.run_name} .* has changed since the list was made: run this again$"
        ):
            command.main()
        assert TIDIED_TAG not in client_of(house).get_run(run.info.run_id).data.tags
    assert (files(house) != before) == (answer == "y")
    assert ("nothing was deleted" in capsys.readouterr().out) == (answer == "")


@pytest.mark.slow
def test_a_run_that_comes_out_otherwise_stays_without_model(house: Project) -> None:
    run = going(house)
    House(1).remove()
    after = files(house)
    client_of(house).set_tag(run.info.run_id, "weights.sha256", "0" * 64)
    said = house("python", "-m", "tools.rebuild", run.info.run_name, fails=True)
    assert "weights: of another digest" in said
    assert "there again" not in said
    assert files(house) == after


@pytest.mark.slow
def test_what_cannot_be_deleted_is_said(house: Project) -> None:
    run, tidy, rename = going(house), House(1), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == "weights":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(
            InputError, match=r"^not all could be deleted: .*weights'; run this again when that is mended$"
        ):
            tidy.remove()
    assert Seen().models == {run.info.run_name}, "the next one ends it"
    assert any(Path("mlartifacts/.tidied").rglob("*"))
    House(1).remove()  # though what the first has removed is still there, as where it cannot be deleted
    assert House(1).is_tidy
    assert not Path("mlartifacts/.tidied").exists()


@pytest.mark.slow
def test_a_killed_training_that_got_its_result_from_dvc_is_kept(house: Project) -> None:
    run, client = going(house), client_of(house)
    for tag in (EVALUATION_TAG, WEIGHTS_TAG):
        client.delete_tag(run.info.run_id, tag)
    client.set_terminated(run.info.run_id, "KILLED")
    [result] = [each for each in recorded.experiments() if each.name == run.info.run_name]
    outcome = sync.Sync(Store.from_environment(), dry_run=False).outcome(result)
    assert outcome == (sync.Outcome.COMPLETED, f", run {run.info.run_id}")
    assert TAKEN_UP_TAG in client.get_run(run.info.run_id).data.tags
    seen = Seen()
    assert any(
        line.startswith("kept: 1 of several processes") and line.endswith("none that is known") for line in seen.lines
    )
    assert not seen.goes

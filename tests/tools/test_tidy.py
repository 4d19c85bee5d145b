"""The house is tidied: with a real DVC, a real store of MLflow, and what killed processes leave."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import mlflow
import pytest

from stages.base.errors import InputError
from stages.base.locks import locked
from stages.tracking.journal import Journal
from stages.tracking.result import TIDIED_TAG
from stages.tracking.store import Store
from tests.conftest import ROOT, Project, clean_environment
from tests.tools.test_rebuild import BACK, EQUAL, OWN, experiment, with_a_result
from tools import recorded, sync
from tools.dvclock import as_yaml, digests_in, digests_of, weights_digest
from tools.runs import Runs
from tools.tidy import __main__ as command
from tools.tidy import busy, leftovers, piece
from tools.tidy.again import COMPUTE, other_bits
from tools.tidy.house import House, data_of
from tools.tidy.piece import Piece, freed, of_files, table

TIDY = ("python", "-m", "tools.tidy")
PINS = "refs/repronet/tidied"
# Packages of the stages that no output depends on.
NO_PART = {
    *("alembic", "filelock", "mlflow", "mlflow-skinny", "mlflow-tracing", "psutil", "pydantic", "pydantic_core"),
    *("repronet", "ruamel.yaml", "SQLAlchemy", "tqdm"),
}


def test_a_long_list_is_a_short_table() -> None:
    pieces = [Piece("model", f"run-{i}", "not needed", 1000 * i, lambda: None) for i in range(12)]
    lines = list(table([*pieces, Piece("cache", "3 files", "nobody's", 2_500_000_000, lambda: None)]))
    assert lines[0].split() == ["kind", "what", "why", "it", "is", "not", "needed", "size"]
    assert [line.split()[1] for line in lines[1:9]] == [f"run-{i}" for i in range(11, 3, -1)], "the largest first"
    assert lines[9].split() == ["model", "and", "4", "more", "6.0", "kB"]
    assert lines[-1] == "in all 2.5 GB: model 66.0 kB, cache 2.5 GB"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_bytes_that_stay_by_another_name_are_not_freed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file").write_bytes(b"1" * 1000)
    (folder / "linked").write_bytes(b"2" * 100)
    os.link(folder / "linked", tmp_path / "other")
    (folder / "link").symlink_to(tmp_path / "other")
    link = len(str(tmp_path / "other"))
    assert freed(folder) == 1000 + link
    of_files("model", "", "", [folder]).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


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
        (
            "from stages.tracking.journal import Journal\njournal = Journal(os.environ)\nwith nullcontext():",
            "the stage",
        ),
        ("from filelock import FileLock\nwith FileLock('{0}/sweeps/lr/lock'):", "the sweep lr"),
    ],
)
def test_nothing_goes_while_somebody_writes(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps/lr").mkdir(parents=True)
    busy.check_idle()
    code = "import os, sys\nfrom contextlib import nullcontext\nfrom pathlib import Path\n" + code.format(tmp_path)
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


def test_data_are_what_stages_read_and_did_not_make() -> None:
    text = (ROOT / "dvc.lock").read_text()
    read, found = digests_of(as_yaml(text.encode()), "deps"), data_of(text)
    assert {read["data/excluded.csv"], read["data/weights/none"], read["stages/nets"]} <= {*found}
    assert not {read["data/prepared"], read["models/net.safetensors"]} & {*found}


def test_every_package_of_the_stages_is_compared() -> None:
    names, found = packages_distributions(), set()
    for path in (ROOT / "stages").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name for module in modules for name in names.get(module.split(".")[0], [])}
    compared = {name.lower().replace("-", "_") for name in found - NO_PART}
    assert compared <= set(COMPUTE)
    assert {"torch", "numpy", "pillow"} <= compared


def test_which_bits_would_be_others(tmp_path: Path) -> None:
    import platform

    import torch

    from stages.tracking.environment import packages

    recorded: dict[str, Any] = {"packages": packages(), "gpu": {}}
    own = {"python": platform.python_version(), "torch": torch.__version__, "numpy": "2", "cpu": "another"}
    own |= {"cpu_capability": "AVX2", "device": "cpu", "threads": "1000"}
    params = {"prepare.source": "digits", "train.determinism": "portable", "train.threads": "2"}

    def said(params: dict[str, str], **changes: str | None) -> str:
        (tmp_path / "environment.json").write_text(json.dumps(recorded))
        tags = {f"env.{name}": value for name, value in (own | changes).items() if value is not None}
        return other_bits(tags, params, tmp_path)

    assert said(params) == ""
    for name in ("python", "torch", "numpy", "cpu", "device", "threads"):
        assert said(params, **{name: None}) == "that do not say what they were made with"
    assert said(params, torch="2.0").startswith("made with other versions than here: torch 2.0")
    assert said(params, cpu_capability="DEFAULT") == "made on another CPU: another", "made without AVX2, or on ARM"
    assert said(params, cpu_capability=None) == "made on another CPU: another"
    assert said(params | {"train.determinism": "machine"}) == "made on another CPU: another"
    assert said(params | {"train.determinism": "off"}).endswith("train.determinism is off")
    assert said({"prepare.source": "digits"}).endswith("train.determinism is off"), "made before there were levels"
    assert said(params | {"train.threads": "auto"}).startswith("made with 1000 threads")
    assert said(params | {"train.processes": "2"}).startswith("of several processes")
    assert said(params | {"prepare.source": "mine"}).startswith("of a source of your own")
    assert said(params, device="H0").startswith("made on H0")
    recorded["packages"] |= {"pillow": "1.0"}
    assert said(params) == "made with other versions than here: pillow 1.0"
    recorded["packages"] |= {"pillow": packages()["pillow"], "ruff": "0"}
    assert said(params) == "", "it computes nothing"
    del recorded["packages"]
    assert said(params) == "that do not say what they were made with"


def test_leftovers_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {}
    for name in ("waits", "arrived", "damaged"):
        journal = Journal({"DVC_ROOT": str(tmp_path)}, store="x", experiment="y")
        journal.close()
        names[name] = journal.folder
    names["arrived"].rename(names["arrived"].with_suffix(".done"))
    names["damaged"].rename(names["damaged"].with_suffix(".damaged"))
    checkpoints = tmp_path / ".repronet/checkpoints"
    checkpoints.mkdir()
    for name, attempts in (("ended", '{"training": "a"}'), ("killed", '{"training": "b"}'), ("old", ""), ("cut", "{")):
        (checkpoints / f"{name}.safetensors").write_bytes(b"1" * 100)
        (checkpoints / f"{name}.attempts").write_text(attempts)
    for path in checkpoints.glob("old.*"):
        os.utime(path, (0, 0))
    for name in (".repronet/rebuild/killed", ".repronet/rebuild/works"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"1" * 10)

    with locked(tmp_path / ".repronet/rebuild/works"):
        pieces = [*leftovers.pieces(["a"])]
    found = {(piece.kind, piece.what): piece.why for piece in pieces}
    assert found == {
        ("journal", f"{names['arrived'].name}.done"): "MLflow has all of it",
        ("checkpoint", "ended"): "its training has ended",
        ("checkpoint", "old"): found["checkpoint", "old"],
        ("rebuild", "killed"): "its rebuild was killed",
    }
    assert re.fullmatch(r"left \d+ days ago", found["checkpoint", "old"])
    assert leftovers.waiting() == 2
    for each in pieces:
        assert each.size > 0
        each.remove()
    assert {path.stem for path in checkpoints.iterdir()} == {"killed", "cut"}
    assert [piece.what for piece in leftovers.pieces(["a"])] == ["works"], "its process has ended by now"
    monkeypatch.setenv("REPRONET_HOME", "/")
    assert [*leftovers.pieces(["a"])] == [], "others may have it, too"


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
    project = Project.at(Path(shutil.copytree(original.root, tmp_path / "a project", symlinks=True)))
    monkeypatch.chdir(project.root)
    return project


class Seen:
    """What tidy would do."""

    def __init__(self, keep: int = 1) -> None:
        self.house = House(keep)
        self.kinds = [piece.kind for piece in self.house.pieces]
        self.models = {piece.what.split()[0] for piece in self.house.pieces if piece.kind == "model"}
        self.remarks = self.house.remarks

    def says(self, words: str) -> bool:
        return any(words in remark for remark in self.remarks)


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


def lock_of(project: Project, name: str) -> str:
    """The dvc.lock of an experiment."""
    commit = project("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").strip()
    return project("git", "show", f"{commit}:dvc.lock")


@pytest.mark.slow
def test_what_was_tidied_is_rebuilt(house: Project) -> None:
    project, before = house, files(house)
    lost = going(project)
    name = lost.info.run_name
    kept = {"seed-1": "seed-2", "seed-2": "seed-1"}[name]
    assert "no terminal" in project(*TIDY, fails=True)
    shown = project(*TIDY, "--keep", "1", "--dry-run")
    assert f"model       {name} (" in shown
    assert shown.count("kept: 1 of the 1 best by validation on") == 2, "own images are others"
    assert files(project) == before

    assert "deleted: " in project(*TIDY, "--keep", "1", "--yes")
    after = files(project)
    gone = sum(size for path, size in before.items() if path not in after)
    assert f"in all {piece.shown(gone)}: " in shown
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

    said = project("python", "-m", "tools.rebuild", name)
    assert EQUAL in said
    assert "there again: its weights and model in MLflow" in said
    assert "models/net.safetensors" in said.split("there again: ")[2]
    back = files(project)
    assert back.keys() == before.keys()
    assert {path: size for path, size in back.items() if "/models/" not in path}.items() <= before.items()
    [run] = [run for run in project.runs() if run.info.run_id == lost.info.run_id]
    assert not [tag for tag in run.data.tags if tag.startswith(TIDIED_TAG)]
    project("dvc", "exp", "apply", name)
    assert "up to date" in project("dvc", "status")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"env.device": ""}, "that do not say what they were made with"),
        ({"env.torch": "2.0.0"}, "made with other versions than here: torch 2.0.0"),
        ({"mlflow.user": "another"}, "of another user, another"),
        ({"mlflow.source.git.commit": "0" * 40}, "whose commit is not in this repository"),
        ({"mlflow.source.git.commit": ""}, "logged without a commit"),
        ({"git.untracked": "large.bin"}, "with new files that were too large for their record"),
        ({"record.version": "99"}, "of later code"),
    ],
)
def test_what_a_run_says_of_itself(change: dict[str, str], reason: str, house: Project) -> None:
    run = going(house)
    for tag, value in change.items():
        client_of(house).set_tag(run.info.run_id, tag, value)
    seen = Seen()
    assert seen.house.pieces == []
    assert f"kept: 1 {reason}" in seen.remarks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("git.patch", "", None, "of other files than their commit's, without a patch"),
        ("git.patch", "-  seed: 0", "-  seed: 7", "whose patch does not fit their commit"),
        ("git.patch", "+  seed: ", "+  seed: 3", "whose params.yaml is not the one of their commit and patch"),
        ("params.yaml", "", None, "without params.yaml"),
        ("dvc.lock", "path: stages/base\n", "path: stages/nowhere\n", "neither git nor DVC's cache has stages/nowhere"),
        ("dvc.lock", "  prepare:\n", "  another:\n", "whose dvc.lock has other stages than today's"),
        ("plots/predictions.csv", "", None, "without plots/predictions.csv"),
        ("weights/net.safetensors", '"version": 3', '"version": 9', "whose weights or data today's code does not read"),
    ],
)
def test_what_a_run_was_made_of(file: str, old: str, new: str | None, reason: str, house: Project) -> None:
    path = artifacts(house, going(house)) / file
    if new is None:
        path.unlink()
    else:
        before = path.read_bytes()
        quoted = (
            (old, new) if file.endswith((".patch", ".lock")) else (old.replace('"', '\\"'), new.replace('"', '\\"'))
        )
        assert quoted[0].encode() in before
        path.write_bytes(before.replace(quoted[0].encode(), quoted[1].encode(), 1))
    seen = Seen()
    assert seen.house.pieces == []
    assert seen.says(reason), seen.remarks


@pytest.mark.slow
def test_what_needs_a_run(house: Project) -> None:
    run, client = going(house), client_of(house)
    name = run.info.run_name
    Path("sweeps/lr").mkdir(parents=True)
    client.set_tag(run.info.run_id, "sweep", "lr")
    assert Seen().says("kept: 1 of sweep lr, as long as sweeps/lr is there")
    client.delete_tag(run.info.run_id, "sweep")
    client.create_registered_model("digits")
    version = client.create_model_version("digits", f"models:/{run.outputs.model_outputs[0].model_id}")
    assert Seen().says("kept: 1 registered in MLflow"), "without alias and run"
    client.delete_model_version("digits", version.version)
    client.set_terminated(run.info.run_id, "KILLED")
    assert Seen().says("kept: 1 that have not ended well")
    client.set_terminated(run.info.run_id, "FINISHED")
    assert Seen(keep=3).models == set()
    assert Seen().models == {name}
    client.delete_run(run.info.run_id)
    seen = Seen()
    assert seen.house.pieces == [], "of deleted runs nothing goes"
    assert seen.says("the outputs of 1 experiments whose result has no run in MLflow")
    client.restore_run(run.info.run_id)

    text = lock_of(house, name)
    Path("another project").mkdir()
    Path("another project/dvc.lock").write_text(text)
    house("git", "add", "another project")
    assert Seen().says("whose weights a commit of a branch or tag names, or the workspace"), "in a nested dvc.lock"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["stash", "queue", "reflog", "merge", "run", "deleted"])
def test_outputs_that_something_else_names_stay(where: str, house: Project) -> None:
    run = going(house)
    lock = Path("dvc.lock")
    before, text = lock.read_text(), lock_of(house, run.info.run_name)
    assert Seen().kinds == ["model", "cache"]
    if where in ("run", "deleted"):  # the champion, say, by a dvc repro of which git knows nothing
        [best] = [
            each
            for each in house.runs()
            if each.info.run_name.startswith("seed") and each.info.run_id != run.info.run_id
        ]
        (artifacts(house, best) / "dvc.lock").write_text(text)
        if where == "deleted":
            client_of(house).delete_run(best.info.run_id)
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
    assert Seen().kinds == ([] if where == "merge" else ["model"]), "what the workspace has is needed"


@pytest.mark.slow
def test_data_are_compared_with_what_dvc_keeps(house: Project) -> None:
    """The run of own images goes where another is better; its images are in DVC's cache alone."""
    [own] = [run for run in house.runs() if run.info.run_name == "own"]
    assert own.info.run_name not in Seen().models
    client = client_of(house)
    client.set_tag(own.info.run_id, "sweep", "")
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
    entries = json.loads(Path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}").read_text())
    kept = Path(f".dvc/cache/files/md5/{entries[0]['md5'][:2]}/{entries[0]['md5'][2:]}")
    kept.rename("aside")
    seen = Seen()
    assert "own" not in seen.models
    assert seen.says("kept: 1 for which neither git nor DVC's cache has data/raw/own as it was")
    Path("aside").rename(kept)
    Path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}").unlink()
    assert Seen().says("DVC's cache is left alone: of data that .dvc files name it lacks the lists of 1 folders")


@pytest.mark.slow
def test_unusual_places_are_left_alone(house: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house("git", "worktree", "add", "-q", str(tmp_path / "other"))
    seen = Seen()
    assert (seen.kinds, seen.says("are left alone: there are several worktrees")) == ([], True)
    house("git", "worktree", "remove", str(tmp_path / "other"))
    house("dvc", "cache", "dir", "--local", str(tmp_path / "shared"))
    shutil.copytree(".dvc/cache", tmp_path / "shared")
    from tools import commits

    commits._cache.cache_clear()
    seen = Seen()
    assert (seen.kinds, seen.says("DVC's cache is left alone: it is outside of this project")) == (["model"], True)
    house("dvc", "config", "--local", "--unset", "cache.dir")
    commits._cache.cache_clear()
    Path(".git/objects/info/alternates").write_text(str(tmp_path))
    assert Seen().says("are left alone: this clone has its commits from another one")
    Path(".git/objects/info/alternates").unlink()
    shutil.copy("mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert Seen().says("is not in this project, so others may need what it has")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert Seen().kinds == []


@pytest.mark.slow
def test_a_commit_of_no_branch_is_pinned(house: Project) -> None:
    run = going(house)
    commit = run.data.tags["mlflow.source.git.commit"]
    command.remove(Seen().house)
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
        copy = Project.at(Path(shutil.copytree(project.root, folder, symlinks=True)))
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
        command.remove(Seen().house)
        expected = files(copy)
    n_removed = len(before) - len(expected)
    for moment in (0, 1, 2, 3, 5, 10, n_removed):
        with copied(house, tmp_path / str(moment)) as copy:
            seen, killed = Seen().house, KilledAt(moment)
            with pytest.MonkeyPatch.context() as patch:
                for name in ("unlink", "rename"):
                    patch.setattr(os, name, killed.change(getattr(os, name)))
                patch.setattr(mlflow.MlflowClient, "log_batch", killed.change(mlflow.MlflowClient.log_batch))
                with pytest.raises(KeyboardInterrupt):
                    command.remove(seen)
            there, tags = files(copy), client_of(copy).get_run(run.info.run_id).data.tags
            assert expected.keys() <= there.keys(), "nothing else goes"
            assert (TIDIED_TAG in tags) == (moment > 0), "what may have lost a file says so"
            assert (there == before) == (moment < 2), "the tag, the first of two folders"
            assert tags["mlflow.source.git.commit"] in copy("git", "for-each-ref", PINS)
            [result] = [each for each in recorded.experiments() if each.name == run.info.run_name]
            assert sync.Sync(Store.from_environment(), dry_run=False).outcome(result)[0] == sync.Outcome.PRESENT
            command.remove(Seen().house)
            assert files(copy) == expected
            assert Seen().house.pieces == []


@pytest.mark.slow
def test_others_wait_or_are_refused_while_it_removes(house: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "WAIT_SECONDS", 0.1)
    with busy.alone():
        assert "lock" in house("dvc", "repro", fails=True)
        with pytest.raises(InputError, match=r"tools\.tidy is at work in this repository"), busy.entering():
            pass
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
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("", False), ("changed", False)])
def test_it_asks_first(
    answer: str, goes: bool, house: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = files(house), going(house)

    def asked(question: str) -> str:
        assert files(house) == before
        assert run.info.run_name in capsys.readouterr().out, "the list comes before the question"
        assert question == "delete these? [y/N] "
        if answer == "changed":
            client_of(house).set_tag(run.info.run_id, "mlflow.user", "another")
        return answer.replace("changed", "y")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.argv", ["tidy", "--keep", "1"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    if answer == "changed":
        with pytest.raises(InputError, match="something has changed since the list was made"):
            command.main()
    else:
        command.main()
    assert (files(house) != before) == goes
    assert ("nothing was deleted" in capsys.readouterr().out) == (answer == "")


@pytest.mark.slow
def test_a_run_that_comes_out_otherwise_stays_without_model(house: Project) -> None:
    run = going(house)
    command.remove(Seen().house)
    after = files(house)
    client_of(house).set_tag(run.info.run_id, "weights.sha256", "0" * 64)
    said = house("python", "-m", "tools.rebuild", run.info.run_name, fails=True)
    assert "weights: of another digest" in said
    assert "there again" not in said
    assert files(house) == after


@pytest.mark.slow
@pytest.mark.usefixtures("house")
def test_what_cannot_be_deleted_is_said_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == "weights":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(InputError, match=r"^1 of 2 could not be deleted, see above$"):
        command.remove(seen.house)
    assert "Permission denied" in capsys.readouterr().err
    monkeypatch.undo()

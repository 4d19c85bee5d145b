"""The house is tidied: with a real DVC, a real store of MLflow, and what killed processes leave."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import pytest

from stages.base.errors import InputError
from stages.base.locks import locked
from stages.tracking.artifacts import lacking
from stages.tracking.journal import Journal
from stages.tracking.result import TIDIED_TAG
from tests.conftest import Project, clean_environment
from tests.servers import Server
from tests.tools.test_rebuild import BACK, EQUAL, OWN, experiment, with_a_result
from tools.runs import Runs
from tools.tidy import __main__ as command
from tools.tidy import cache, models
from tools.tidy.busy import AT_WORK, check_idle
from tools.tidy.leftovers import Leftovers
from tools.tidy.needed import Needed, other_bits
from tools.tidy.piece import Piece, table

TIDY = ("python", "-m", "tools.tidy")


def nothing() -> None:
    pass


def test_a_long_list_is_a_short_table() -> None:
    pieces = [Piece("model", f"run-{i}", "not needed", 1000 * i, nothing) for i in range(12)]
    lines = list(table([*pieces, Piece("cache", "3 files", "nobody's", 2_500_000_000, nothing)]))
    assert lines[0].split() == ["kind", "what", "why", "it", "is", "not", "needed", "size"]
    assert [line.split()[1] for line in lines[1:9]] == [f"run-{i}" for i in range(11, 3, -1)], "the largest first"
    assert lines[9].split() == ["model", "and", "4", "more", "6.0", "kB"]
    assert lines[-1] == "in all 2.5 GB: model 66.0 kB, cache 2.5 GB"
    assert len({len(line) for line in lines[:-1]}) == 1


@pytest.mark.parametrize(
    ("words", "is_at_work"),
    [
        ("dvc repro", True),
        ("/venv/bin/python /venv/bin/dvc exp run --temp", True),
        ("/venv/bin/python3.11 -P -m dvc exp run", True),
        ("python -m stages train data/prepared", True),
        ("python -m stages.evaluate a b", True),
        ("python -m tools.sweep -S train.seed=1,2", True),
        ("python -m tools.compare a b", False),
        ("vim dvc.yaml", False),
        ("git add stages", False),
        ("python -m tools.ui", False),
    ],
)
def test_who_is_at_work(words: str, is_at_work: bool) -> None:
    assert (AT_WORK.fullmatch(words) is not None) == is_at_work


def test_nothing_goes_while_an_output_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_idle()
    code = "import sys\nfrom pathlib import Path\nfrom stages.base.locks import locked\n"
    code += f"with locked(Path({str(tmp_path / 'net')!r})):\n    print('locked', flush=True)\n    sys.stdin.read()"
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_environment() | {"DVC_ROOT": str(tmp_path), "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=rf"^process {writer.pid} \(.*is at work in this repository"):
        check_idle()
    writer.communicate()
    check_idle()


def stage(project: Project, content: str) -> None:
    """Let the one stage of a small project write `content`, which DVC keeps."""
    (project.root / "params.yaml").write_text(f"content: {content}\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of DVC in a folder of a git repository: data, one stage, two commits and two experiments."""
    repository = tmp_path_factory.mktemp("small")
    project = Project.at(repository / "a project")
    project.root.mkdir()
    project("git", "init", "-q", "..")
    project("git", "config", "user.name", "test")
    project("git", "config", "user.email", "test@localhost")
    project("dvc", "init", "-q", "--subdir")
    (project.root / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (project.root / "dvc.yaml").write_text(
        "stages:\n  write:\n    cmd: mkdir out && grep content params.yaml > out/file\n"
        "    params: [content]\n    outs: [out]\n"
    )
    for content in ("first", "second"):
        (project.root / "own").write_text(f"data of the {content}\n")
        project("dvc", "add", "-q", "own")
        stage(project, content)
        project("dvc", "repro", "-q")
        project("git", "add", "-A")
        project("git", "commit", "-qm", content)
    for name in ("kept", "gone"):
        if name == "gone":
            (project.root / "own").write_text("data of gone\n")
            project("dvc", "add", "-q", "own")
        project("dvc", "exp", "run", "-q", "--name", name, "-S", f"content={name}")
    project("git", "checkout", "-q", "HEAD", "--", ".")
    project("dvc", "checkout", "-q")
    return project


def held(project: Project) -> set[str]:
    """What the files in DVC's cache hold, but for lists of files."""
    files = (project.root / ".dvc/cache/files").rglob("*")
    return {path.read_text().strip() for path in files if path.is_file() and path.suffix != ".dir"}


def test_of_dvc_s_cache_outputs_go_and_data_stay(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.root)
    cache.check_own()
    before = held(small)
    refs = small("git", "for-each-ref")
    assert {"content: gone", "content: kept", "content: first"} <= before
    dropped = small("git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/gone").split()
    assert [*cache.unneeded([], [], [])] == []
    [piece] = cache.unneeded(dropped, ["0" * 40], [])
    # The output is a file, and the list of its folder's files.
    assert (piece.kind, piece.what, piece.size > len("content: gone\n")) == ("cache", "2 files", True)
    assert held(small) == before, "nothing has gone yet"
    piece.remove()
    assert before - held(small) == {"content: gone"}
    assert {f"data of {name}" for name in ("gone", "the first", "the second")} <= held(small)
    assert [*cache.unneeded(dropped, ["0" * 40], [])] == []
    assert small("git", "for-each-ref") == refs, "no tag is left"
    assert small("dvc", "status", "-q") == ""
    small("dvc", "exp", "apply", "kept")
    assert (small.root / "out/file").read_text() == "content: kept\n"
    small("git", "checkout", "-q", "HEAD", "--", ".")
    small("dvc", "checkout", "-q")


def test_data_that_only_a_patch_names_stay(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.root)
    (small.root / "own").write_text("data of a run\n")
    small("dvc", "add", "-q", "own")
    patch = small("git", "diff", "HEAD")
    small("git", "checkout", "-q", "HEAD", "--", ".")
    small("dvc", "checkout", "-q")
    [piece] = cache.unneeded([], [], [])
    assert (piece.what, piece.size) == ("1 file", len("data of a run\n"))
    assert [*cache.unneeded([], [], [patch])] == []


def test_a_cache_that_others_may_share_is_left_alone(
    small: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(small.root)
    small("dvc", "cache", "dir", "--local", str(tmp_path))
    with pytest.raises(InputError, match=f"^{tmp_path} is outside of this repository.*--shared-cache"):
        cache.check_own()
    small("dvc", "config", "--local", "--unset", "cache.dir")
    cache.check_own()


@pytest.fixture
def house(compared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """The store of four evaluated runs, with its artifacts, in a git repository whose one commit is theirs."""
    shutil.copy(compared.root / "mlflow.db", tmp_path)
    shutil.copytree(compared.root / "mlartifacts", tmp_path / "mlartifacts")
    project = Project.at(tmp_path)
    project("git", "init", "-q")
    project("git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.chdir(tmp_path)
    store = Runs()
    commit = project("git", "rev-parse", "HEAD").strip()
    for run in store.evaluated():
        # They were made by hand, so that what DVC and git say of a run is missing.
        store.client.set_tag(run.info.run_id, "mlflow.source.git.commit", commit)
        store.client.set_tag(run.info.run_id, "git.dirty", "true")
        store.client.set_tag(run.info.run_id, "git.untracked", "")
        train = {"outs": [{"path": "models/net.safetensors", "md5": run.info.run_name}]}
        store.client.log_text(run.info.run_id, json.dumps({"stages": {"train": train}}), "dvc.lock")
    yield store
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def why(store: Runs, keep: int = 1, unequal: bool = False) -> dict[str, str]:
    needed = Needed(store, keep, unequal)
    return {run.info.run_name: needed.why(run) for run in needed.runs}


def ids(store: Runs) -> dict[str, str]:
    return {run.info.run_name: run.info.run_id for run in store.evaluated()}


def test_what_a_run_is_needed_for(house: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.tidy.needed.is_kept", lambda *_: True)
    runs = {run.info.run_name: run for run in house.evaluated()}
    found = why(house)
    # The images of `others` differ in the test split alone.
    [(best, reason)] = [(name, reason) for name, reason in found.items() if reason]
    assert reason.startswith("of the 1 best by validation on ")
    accuracies = {name: run.data.metrics["best/valid_accuracy"] for name, run in runs.items()}
    assert accuracies[best] == max(accuracies.values())
    assert all(why(house, keep=4).values())

    name, other, third = sorted(name for name in found if name != best)
    house.client.create_registered_model("digits")
    version = house.client.create_model_version("digits", house.read(runs[name]).model, runs[name].info.run_id)
    assert why(house)[name] == "", "a version without an alias needs nothing"
    house.client.set_registered_model_alias("digits", "champion", version.version)
    assert why(house)[name] == "registered as digits@champion"

    house.client.set_tag(runs[other].info.run_id, "sweep", "lr")
    house.client.set_tag(runs[other].info.run_id, "dvc.baseline_rev", "0" * 40)
    assert why(house)[other] == ""
    Path("sweeps/lr").mkdir(parents=True)
    Path("sweeps/lr/plan.json").write_text(json.dumps({"baseline": "0" * 40}))
    assert why(house)[other] == "of sweep lr, as long as sweeps/lr is there"

    Path("dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": [{"path": "n.safetensors", "md5": third}]}}}))
    assert why(house)[third] == "whose weights are a commit's of a branch or tag, or the workspace's"
    Path("dvc.lock").unlink()
    house.client.set_tag(runs[third].info.run_id, "git.dirty", "false")
    assert why(house)[third] == "of a commit of a branch or tag"


def test_what_cannot_be_made_again_stays(house: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = why(house)
    worst = next(name for name, reason in found.items() if not reason.startswith("of the 1 best"))
    run_id = ids(house)[worst]

    def said(tag: str, value: str) -> str:
        before = house.client.get_run(run_id).data.tags[tag]
        house.client.set_tag(run_id, tag, value)
        reason = why(house)[worst]
        house.client.set_tag(run_id, tag, before)
        return reason

    assert found[worst] == "that cannot be rebuilt: neither git nor DVC has data/excluded.csv", "in this repository"
    monkeypatch.setattr("tools.tidy.needed.is_kept", lambda *_: True)
    assert why(house)[worst] == ""
    assert (
        said("mlflow.source.git.commit", "0" * 40) == "that cannot be rebuilt: their commit is not in this repository"
    )
    assert said("mlflow.source.git.commit", "") == "that cannot be rebuilt: logged without a commit"
    assert said("git.untracked", "large.bin").startswith("that cannot be rebuilt: they had new files")
    (Path("mlartifacts") / run_id / "artifacts/plots/predictions.csv").unlink()
    assert why(house)[worst] == "that cannot be rebuilt: without plots/predictions.csv"


def test_which_bits_would_be_others() -> None:
    tags = {"env.device": "cpu", "env.cpu": "another", "env.threads": "1000"}
    assert other_bits(tags, {"train.determinism": "portable", "train.threads": "2"}) == ""
    assert other_bits(tags, {"train.determinism": "machine", "train.threads": "2"}).endswith("made on another")
    assert other_bits(tags, {"train.determinism": "portable", "train.threads": "auto"}).endswith("with 1000 threads")
    assert other_bits(tags, {"train.determinism": "off"}).endswith("train.determinism is off")
    assert other_bits({"env.device": "H0"}, {"train.threads": "2"}).endswith("made on H0")


def test_a_model_goes_and_its_run_stays(house: Runs) -> None:
    [run] = [run for run in house.evaluated() if run.info.run_name == "closed"]
    before = house.read(run)
    [piece] = models.unneeded(house, run, "abc", 1)
    files = [path for path in Path("mlartifacts").rglob("*") if path.is_file()]
    piece.remove()
    gone = {path for path in files if not path.exists()}
    assert {path.name for path in gone} >= {"MLmodel", "model.pt2", "net"}, "of the model and of the weights"
    assert all("weights" in path.parts or "models" in path.parts for path in gone)
    run = house.client.get_run(run.info.run_id)
    assert run.data.tags[TIDIED_TAG] == time.strftime("%Y-%m-%d")
    after = house.read(run)
    assert (after.metrics, after.params, after.model) == (before.metrics, before.params, before.model)
    assert after.predictions.equals(before.predictions)
    with pytest.raises(
        InputError, match=f"went with tools.tidy on .*; python -m tools.rebuild {run.info.run_id} brings"
    ):
        house.weights(after, Path())
    assert [*models.unneeded(house, run, "abc", 1)] == []
    assert lacking(house.client, run, ["params.yaml"]) == [], "tools.sync is to bring nothing back"
    assert lacking(house.client, run, ["a.txt"]) == ["a.txt"]


def test_leftovers_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Project.at(tmp_path)("git", "init", "-q")
    environment = {"DVC_ROOT": str(tmp_path)}
    names = {}
    for name, digest in (("waits", "1"), ("arrived", "1"), ("lost", "2"), ("damaged", "1"), ("empty", "")):
        journal = Journal(environment, store="x", experiment="y")
        if digest:
            journal.write("tags", tags={"weights.sha256": digest})
        journal.close()
        names[name] = journal.folder
    names["arrived"].rename(names["arrived"].with_suffix(".done"))
    names["lost"].rename(names["lost"].with_suffix(".damaged"))
    names["damaged"].rename(names["damaged"].with_suffix(".damaged"))
    (names["empty"] / "events.jsonl").write_bytes(b"\0" * 100)
    os.utime(names["empty"], (0, 0))

    checkpoints = tmp_path / ".repronet/checkpoints"
    checkpoints.mkdir()
    for name, training in (("ended", "a"), ("killed", "b"), ("old", "c")):
        (checkpoints / f"{name}.safetensors").write_bytes(b"1" * 100)
        (checkpoints / f"{name}.attempts").write_text(json.dumps({"training": training, "number": 1}))
    for path in checkpoints.glob("old.*"):
        os.utime(path, (0, 0))
    for name in (".repronet/rebuild/killed", ".repronet/rebuild/works", ".dvc/tmp/sweeps/lr", ".dvc/tmp/exps/tmp1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"1" * 10)

    leftovers = Leftovers(weights=["1"], trainings=["a"])
    with locked(tmp_path / ".repronet/rebuild/works"):
        pieces = [*leftovers.pieces()]
    found = {(piece.kind, piece.what.removesuffix(".done").removesuffix(".damaged")): piece.why for piece in pieces}
    assert found == {
        ("journal", names["arrived"].name): "MLflow has all of it",
        ("journal", names["damaged"].name): "damaged, and its result has a run in MLflow",
        ("journal", names["empty"].name): "its process was killed at its start",
        ("checkpoint", "ended"): "its training has ended",
        ("checkpoint", "old"): found["checkpoint", "old"],
        ("rebuild", "killed"): "its rebuild was killed",
        ("copy", "lr"): "its sweep was killed",
        ("copy", "tmp1"): "its dvc exp run was killed",
    }
    assert found["checkpoint", "old"].startswith("nobody came back to it for ")
    assert [line.split(":")[0] for line in leftovers.waiting] == [
        f"journal {name}" for name in sorted([names["waits"].name, f"{names['lost'].name}.damaged"])
    ]
    for piece in pieces:
        assert piece.size > 0
        piece.remove()
    assert {path.name for path in checkpoints.iterdir()} == {"killed.safetensors", "killed.attempts"}
    assert [piece.what for piece in Leftovers(["1"], ["a"]).pieces()] == ["works"], "its process has ended by now"
    assert (tmp_path / ".repronet/rebuild/works/file").exists()


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("", False), ("no", False)])
def test_it_asks_first(
    answer: str, goes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed: list[str] = []

    class Small:
        def __init__(self, *_: Any) -> None:
            pass

        def pieces(self) -> list[Piece]:
            return [Piece("model", "seed-1", "no use", 5, lambda: removed.append("seed-1"))]

        def remarks(self) -> list[str]:
            return []

    def asked(question: str) -> str:
        assert removed == []
        assert "seed-1" in capsys.readouterr().out, "the list comes before the question"
        assert question == "delete these? [y/N] "
        return answer

    monkeypatch.setattr(command, "House", Small)
    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.argv", ["tidy"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(InputError, match="there is no terminal to ask on: --yes"):
        command.main()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(command, "check_idle", nothing)
    command.main()
    assert removed == ["seed-1"] * goes
    assert ("nothing was deleted" in capsys.readouterr().out) != goes


def test_what_cannot_be_deleted_is_said_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails() -> None:
        raise InputError("it is read-only")

    removed: list[str] = []
    pieces = [Piece("model", "a", "", 1, fails), Piece("model", "b", "", 2, lambda: removed.append("b"))]
    with pytest.raises(InputError, match=r"^1 of 2 could not be deleted, see above$"):
        command.remove(pieces)
    assert removed == ["b"]
    assert capsys.readouterr().err == "model a: it is read-only\n"


@pytest.fixture(scope="module")
def lived_in(make_project: Callable[[], Project]) -> Project:
    """A project with a run of its commit, and three experiments, one of own images that DVC keeps."""
    project = with_a_result(make_project())
    for name, changes in (("own", OWN), ("seed-1", ["train.seed=1"]), ("seed-2", ["train.seed=2"])):
        experiment(project, name, *changes)
    return project


def weights_of(project: Project) -> dict[str, bool]:
    """Which runs have the weights of their digest in the store."""
    found = {}
    for run in project.runs():
        file = project.root / "mlartifacts" / run.info.run_id / "artifacts/weights/net.safetensors"
        found[run.info.run_name] = file.exists()
        assert not file.exists() or sha256(file.read_bytes()).hexdigest() == run.data.tags["weights.sha256"]
    return found


@pytest.mark.slow
def test_what_was_tidied_is_rebuilt(lived_in: Project) -> None:
    project = lived_in
    assert "no terminal" in project(*TIDY, fails=True)
    files = sorted(path for path in project.root.rglob("*") if path.is_file() and ".git/" not in str(path))
    shown = project(*TIDY, "--keep", "1", "--dry-run")
    lost = next(name for name in ("seed-1", "seed-2") if f"model       {name} (" in shown)
    kept = {"seed-1": "seed-2", "seed-2": "seed-1"}[lost]
    assert "1 whose weights are a commit's of a branch or tag" in shown
    assert shown.count("of the 1 best by validation on") == 2, "own images are others"
    after = sorted(path for path in project.root.rglob("*") if path.is_file() and ".git/" not in str(path))
    ours = [path for path in after if path.suffix not in (".pyc", ".lock")]
    assert ours == [path for path in files if path.suffix not in (".pyc", ".lock")], "nothing goes in a dry run"

    assert "deleted: " in project(*TIDY, "--keep", "1", "--yes")
    assert "there is nothing to delete" in project(*TIDY, "--keep", "1", "--yes")
    head = project("git", "rev-parse", "HEAD~1").strip()[:9]
    assert weights_of(project) == {lost: False, kept: True, "own": True, head: True}
    assert "missing" in project("dvc", "exp", "apply", lost, fails=True)
    project(*BACK)
    project("dvc", "checkout", "-q")
    assert "up to date" in project("dvc", "status")
    project("dvc", "exp", "apply", kept)
    project(*BACK)
    project("dvc", "checkout", "-q")

    [run] = [run for run in project.runs() if run.info.run_name == lost]
    hint = f"python -m tools.rebuild {run.info.run_id} brings them back"
    assert hint in project("python", "-m", "tools.predict", lost, "data/raw/own/a", "--out", "scores/a.csv", fails=True)
    assert hint in project("python", "-m", "tools.serve", lost, fails=True)
    assert kept in project("python", "-m", "tools.compare", lost, kept)
    first = project("git", "rev-list", "--max-parents=0", "HEAD").strip()[:9]
    for _ in range(2):  # with what was read of the commits, and without
        said = project("python", "-m", "tools.sync")
        assert f"{lost}: in place\n" in said
        assert re.findall(r"^(\S+): skipped", said, re.MULTILINE) == [first], "its results are of elsewhere"
        shutil.rmtree(project.root / ".dvc/tmp/commits")
    assert weights_of(project)[lost] is False

    said = project("python", "-m", "tools.rebuild", lost)
    assert EQUAL in said
    assert "weights and model are in MLflow again" in said
    assert all(weights_of(project).values())
    [run] = [run for run in project.runs() if run.info.run_name == lost]
    assert not [tag for tag in run.data.tags if tag.startswith(TIDIED_TAG)]
    project("python", "-m", "tools.predict", lost, "data/raw/own/a", "--out", "scores/a.csv")
    project("dvc", "exp", "apply", lost)
    assert "up to date" in project("dvc", "status")
    project(*BACK)
    project("dvc", "checkout", "-q")

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    client.delete_run(run.info.run_id)
    shown = project(*TIDY, "--keep", "10", "--dry-run")
    assert f"kept: 1 that were deleted in MLflow, whose files mlflow gc deletes for good: {lost} (" in shown
    assert re.search(r"^cache +\d+ files", shown, re.MULTILINE), "of its experiment"
    assert not re.search("^model", shown, re.MULTILINE)
    client.restore_run(run.info.run_id)
    assert "there is nothing to delete" in project(*TIDY, "--keep", "10", "--dry-run")


@pytest.mark.slow
def test_a_tidied_run_that_comes_out_otherwise_stays_without_model(lived_in: Project) -> None:
    project = lived_in
    project(*TIDY, "--keep", "1", "--yes")
    [name] = [name for name, is_there in weights_of(project).items() if not is_there]
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    [run] = [run for run in project.runs() if run.info.run_name == name]
    digest = run.data.tags["weights.sha256"]
    client.set_tag(run.info.run_id, "weights.sha256", "0" * 64)
    assert "weights: of another digest" in project("python", "-m", "tools.rebuild", name, fails=True)
    assert weights_of(project)[name] is False
    client.set_tag(run.info.run_id, "weights.sha256", digest)


@pytest.mark.slow
def test_nothing_goes_while_dvc_works(lived_in: Project) -> None:
    process = lived_in.start("dvc", "exp", "run", "--temp", "-S", "train.epochs=2000", "-S", "train.seed=9")
    deadline = time.monotonic() + 60
    while not list((lived_in.root / ".repronet/locks").glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        said = lived_in(*TIDY, "--dry-run", fails=True)
        assert "is at work in this repository. Let it end, or end it, and run this again." in said
        assert len(said.splitlines()) == 1
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_models_on_a_server_go_too(make_project: Callable[[], Project]) -> None:
    project = with_a_result(make_project())
    server = Server(project)
    server.start()
    try:
        for seed in (1, 2):
            project(
                "dvc",
                "exp",
                "run",
                "--temp",
                "--name",
                f"s-{seed}",
                "-S",
                f"train.seed={seed}",
                MLFLOW_TRACKING_URI=server.uri,
            )
        said = project(*TIDY, "--keep", "1", "--yes", MLFLOW_TRACKING_URI=server.uri)
        left = list((project.root / "served").rglob("net.safetensors"))
        assert len(left) == 1, said
        assert len(list((project.root / "served").rglob("model.pt2"))) == 1
        again = project(*TIDY, "--keep", "1", "--yes", MLFLOW_TRACKING_URI=server.uri)
        assert "there is nothing to delete" in again
    finally:
        server.kill()

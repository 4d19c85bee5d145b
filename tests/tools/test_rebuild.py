"""Runs that are rebuilt from what they recorded, by the real pipeline, and runs whose record was changed."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest

from tests.conftest import Project, write_image
from tests.test_killed import after, killed

PARTS = [
    "params",
    "code and data that are read",
    "prepared data",
    "weights",
    "history",
    "metrics",
    "predictions",
    "files of the evaluation",
]
EQUAL = "all equal, bit for bit"
BACK = ("git", "checkout", "-q", "HEAD", "--", "params.yaml", "dvc.lock", "metrics")


OWN = ["prepare.source=folder", "prepare.path=data/raw/own"]
TURNED = "train.transforms.train=[{RandomAffine: {degrees: 9}}]"


def with_a_result(project: Project) -> Project:
    """Let a project have short trainings, own images that DVC keeps, and one run, of its commit."""
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30 ", "epochs: 2 ")
    for seed in range(40):
        write_image(project.root / "data/raw/own" / "ab"[seed % 2] / f"{seed}.png", seed)
    project("dvc", "add", "-q", "data/raw/own")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "short, with images")
    project("dvc", "repro")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "results")
    return project


def experiment(project: Project, name: str, *changes: str, options: tuple[str, ...] = ("--temp",)) -> None:
    project("dvc", "exp", "run", *options, "--name", name, *(f"--set-param={change}" for change in changes))


def add_a_module(project: Project) -> None:
    """Let the net be of a new module, which git does not know."""
    (project.root / "stages/nets/mine.py").write_text(
        "from stages.nets.net import Net\n\n\nclass Mine(Net):\n    pass\n"
    )
    project.edit(
        "stages/nets/build.py",
        "from stages.nets.net import",
        "from stages.nets import mine  # noqa\nfrom stages.nets.net import",
    )
    (project.root / "stages/nets/table.bin").write_bytes(bytes(range(256)))


@pytest.fixture(scope="module")
def recorded(make_project: Callable[[], Project]) -> Project:
    """A project with three runs: of a commit, of a dirty tree with a new module, and of own images that DVC keeps."""
    project = with_a_result(make_project())
    experiment(project, "own", *OWN, TURNED, "train.precision=bfloat16", "train.workers=1")
    add_a_module(project)
    experiment(project, "dirty", "train.seed=1", options=())
    project(*BACK)
    return project


@pytest.mark.torture
def test_twelve_kinds_of_runs(make_project: Callable[[], Project]) -> None:
    project = with_a_result(make_project())
    experiment(project, "in-the-workspace", "train.seed=1", options=())
    project(*BACK)
    experiment(project, "queued", "train.seed=2", options=("--queue",))
    project("dvc", "exp", "run", "--run-all")
    experiment(project, "temp", "train.seed=3")
    project("python", "-m", "tools.sweep", "--name", "sweep", "-S", "train.seed=4,5")
    long = ("dvc", "exp", "run", "--temp", "--name", "resumed", "-S", "train.epochs=300")
    assert killed(project, long, after(1))
    assert "goes on after epoch" in project(*long)
    experiment(project, "fashion", "prepare.source=fashion_mnist", "train.epochs=1")
    experiment(project, "own", *OWN)
    experiment(project, "bfloat16", "train.precision=bfloat16")
    experiment(project, "transforms", TURNED, "train.workers=2")
    with (project.root / "stages/nets/net.py").open("a") as file:
        file.write("# changed\n")
    experiment(project, "dirty", "train.seed=6", options=())
    project(*BACK)
    project("git", "checkout", "-q", "--", "stages")
    add_a_module(project)
    experiment(project, "module", "train.seed=7", options=())
    project(*BACK)

    printed, _ = project.start("python", "-m", "tools.rebuild", "--all").communicate(timeout=1800)
    table = dict(re.findall(r"^(\S+) \(\w{8}\) +(\S.*)", printed, re.MULTILINE))
    print("\n".join(f"{name}: {outcome}" for name, outcome in table.items()))
    assert len(table) == 13, "one commit, two of the sweep, and ten others"
    assert set(table.values()) == {EQUAL}


@pytest.mark.slow
def test_with_the_packages_that_it_was_made_with(recorded: Project) -> None:
    process = recorded.start("python", "-m", "tools.rebuild", "own", "--venv")
    printed, _ = process.communicate(timeout=900)  # pip takes minutes, where uv does not come
    assert process.returncode == 0, printed
    assert re.search(r"installing the 2\d\d packages that it was made with", printed)
    assert EQUAL in printed


def rebuilt(project: Project, *names: str, fails: bool = False) -> dict[str, str]:
    """Run the command; return what it says of each part, and of the run as a whole under ""."""
    printed = project("python", "-m", "tools.rebuild", *names, fails=fails)
    lines = [line for line in printed.splitlines() if line.startswith("  ")]
    parts = dict(line.strip().split(": ", 1) for line in lines[:-1])
    return {**parts, "": lines[-1].strip()}


@pytest.mark.slow
def test_every_run_is_rebuilt(recorded: Project) -> None:
    printed = recorded("python", "-m", "tools.rebuild", "--all")
    head = recorded("git", "rev-parse", "HEAD~1").strip()[:9]
    table = dict(re.findall(r"^(\S+) \(\w{8}\) +(\S.*)", printed, re.MULTILINE))
    assert table == {"dirty": EQUAL, "own": EQUAL, head: EQUAL}
    for part in PARTS:
        assert printed.count(f"  {part}: equal, bit for bit\n") == 3
    assert list((recorded.root / ".repronet/rebuild").iterdir()) == []
    assert len(recorded.runs()) == 3, "rebuilding writes nothing to the store"


@contextmanager
def changed(file: Path, old: bytes, new: bytes) -> Iterator[None]:
    before = file.read_bytes()
    assert before.count(old) == 1
    file.write_bytes(before.replace(old, new))
    try:
        yield
    finally:
        file.write_bytes(before)


@pytest.mark.slow
def test_a_record_that_was_changed_is_found_out(recorded: Project) -> None:
    [run] = [run for run in recorded.runs() if run.info.run_name == "dirty"]
    artifacts = recorded.root / "mlartifacts" / run.info.run_id / "artifacts"

    client, digest = mlflow.MlflowClient(f"sqlite:///{recorded.root}/mlflow.db"), run.data.tags["weights.sha256"]

    def set_seed(value: str) -> None:
        with closing(sqlite3.connect(recorded.root / "mlflow.db")) as database, database:
            row = (value, run.info.run_id, "train.seed")
            database.execute("UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?", row)

    set_seed("7")
    client.set_tag(run.info.run_id, "weights.sha256", "0" * 64)
    with changed(artifacts / "git.patch", b"+class Mine(Net):", b"+class Yours(Net):"):
        said = rebuilt(recorded, "dirty", fails=True)
    assert said[""] == "different: params, code and data that are read, weights"
    assert said["params"] == "train.seed: 7 before, 1 now"
    assert said["code and data that are read"] == "stages/nets"
    assert said["weights"] == "the file in the store is not the one of the run's weights.sha256"
    assert said["predictions"] == "equal, bit for bit"
    set_seed("1")
    client.set_tag(run.info.run_id, "weights.sha256", digest)

    with changed(artifacts / "git.patch", b" from stages.nets.net import", b" from stages.nets.no import"):
        said = rebuilt(recorded, "dirty", fails=True)
    assert said[""].startswith("cannot be rebuilt: its git.patch does not fit its commit: ")
    predictions = artifacts / "plots/predictions.csv"
    predictions.rename(artifacts / "plots/other.csv")
    said = rebuilt(recorded, "dirty", fails=True)
    assert said[""].startswith("cannot be rebuilt: the run dirty (")
    assert said[""].endswith(" lacks plots/predictions.csv, which python -m tools.sync adds")
    (artifacts / "plots/other.csv").rename(predictions)
    (artifacts / "params.yaml").rename(artifacts / "other.yaml")
    assert rebuilt(recorded, "dirty", fails=True)[""] == "cannot be rebuilt: it has no params.yaml"
    (artifacts / "other.yaml").rename(artifacts / "params.yaml")
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "0" * 40)
    said = rebuilt(recorded, "dirty", fails=True)
    assert said[""].startswith("cannot be rebuilt: its commit 000000000 is not in this repository")


@pytest.mark.slow
def test_of_many_each_says_what_is_wrong(recorded: Project) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{recorded.root}/mlflow.db")
    runs = recorded.runs()
    for run in runs:
        client.set_tag(run.info.run_id, "record.version", "99")
    printed = recorded("python", "-m", "tools.rebuild", "--all", fails=True)
    table = dict(re.findall(r"^(\S+) \(\w{8}\) +(\S.*)", printed, re.MULTILINE))
    assert len(table) == len(runs)
    for outcome in table.values():
        assert outcome.endswith("is of version 99; this code reads up to 1: take the later code")
    for run in runs:
        client.delete_tag(run.info.run_id, "record.version")

"""Runs that are rebuilt from what they recorded, by the real pipeline, and runs whose record was changed."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest

from tests.conftest import Project, write_image

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


@pytest.fixture(scope="module")
def recorded(make_project: Callable[[], Project]) -> Project:
    """A project with three runs: of a commit, of a dirty tree with a new module, and of own images that DVC keeps."""
    project = make_project()
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

    own = ["prepare.source=folder", "prepare.path=data/raw/own", "train.precision=bfloat16", "train.workers=1"]
    changes = [*own, "train.transforms.train=[{RandomAffine: {degrees: 9}}]"]
    project("dvc", "exp", "run", "--temp", "--name", "own", *(f"--set-param={change}" for change in changes))

    (project.root / "stages/nets/mine.py").write_text(
        "from stages.nets.net import Net\n\n\nclass Mine(Net):\n    pass\n"
    )
    project.edit(
        "stages/nets/build.py",
        "from stages.nets.net import",
        "from stages.nets import mine  # noqa\nfrom stages.nets.net import",
    )
    (project.root / "stages/nets/table.bin").write_bytes(bytes(range(256)))
    project("dvc", "exp", "run", "--name", "dirty", "-S", "train.seed=1")
    project(*BACK)
    return project


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
    (artifacts / "params.yaml").rename(artifacts / "other.yaml")
    assert rebuilt(recorded, "dirty", fails=True)[""] == "cannot be rebuilt: it has no params.yaml"
    (artifacts / "other.yaml").rename(artifacts / "params.yaml")
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "0" * 40)
    said = rebuilt(recorded, "dirty", fails=True)
    assert said[""].startswith("cannot be rebuilt: its commit 000000000 is not in this repository")

"""Results that go from clone to clone, as README and docs/sharing.md say, by real servers.

Those of git and MLflow, DVC's remote in a directory and in S3, and PostgreSQL.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project, runs
from tests.servers import BUCKET, Server, postgresql, s3

[SHARE] = re.findall(r"^## Share\n\n```\n(.*?)^```\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
TO_REMOTE, TO_GIT, IN_CLONE = (line.split("   #")[0].strip() for line in SHARE[0].splitlines())
LACKS = "DVC's cache lacks models/net.safetensors, data/prepared/dataset.json, plots"


EQUAL = "\n  all equal, bit for bit\n"


def shell(project: Project, command: str, url: str = "") -> str:
    return project("bash", "-ec", command.replace("URL", url or f"{project.root.parent}/storage"))


def sync(project: Project, name: str, fails: bool = False) -> tuple[str, str]:
    """Run tools.sync for a result; return what it says of it, and its last line."""
    first, *_, last = project("python", "-m", "tools.sync", name, fails=fails).splitlines()
    return first, last


@pytest.fixture
def two(tmp_path: Path, digits: Path) -> tuple[Project, Project]:
    """A project with a committed result of its own, and a clone of it without DVC's files."""
    (tmp_path / "p").mkdir()
    project = Project(tmp_path / "p")
    project("git", "init", "-q", "--bare", str(tmp_path / "hub"))
    project("git", "remote", "add", "origin", str(tmp_path / "hub"))
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30", "epochs: 2")
    shutil.copytree(digits, project.root / "data/prepared")
    project("bash", "-ec", "dvc commit -q -f prepare && dvc repro && git add -A && git commit -q -m results")
    project("git", "push", "-q", "origin", "HEAD")
    project("git", "clone", "-q", str(tmp_path / "hub"), str(tmp_path / "clone"))
    return project, Project.at(tmp_path / "clone")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server of S3, and what lets its clients reach it, in the environment."""
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield environment


def check_that_it_is_nowhere(secret: str, *folders: Path) -> None:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("url", ["", f"s3://{BUCKET}/results"])
def test_an_experiment_after_the_remote(two: tuple[Project, Project], keys: dict[str, str], url: str) -> None:
    project, clone = two
    shell(project, TO_REMOTE, url)
    project("dvc", "exp", "run", "--temp", "--name", "seed-1", "-S", "train.seed=1")
    assert "files uploaded" in shell(project, TO_GIT)
    clone("git", "pull", "-q")
    said = shell(clone, IN_CLONE)
    assert re.search(r"^seed-1: created, run", said, re.M)
    names = [run.info.run_name for run in clone.runs()]
    assert len(names) == 2
    assert "seed-1" in names
    assert "Running stage" not in clone("dvc", "repro")
    assert clone("git", "status", "--porcelain") == ""
    assert EQUAL in clone("python", "-m", "tools.rebuild", "seed-1")
    check_that_it_is_nowhere(keys["AWS_SECRET_ACCESS_KEY"], project.root, clone.root)


@pytest.mark.torture  # tests/test_deploy.py has the same server for a team
def test_a_server_with_postgresql(make_project: Callable[[], Project]) -> None:
    """All that reads or writes rows, with those in PostgreSQL and the files in S3, which the server alone can reach."""
    project, other = make_project(), make_project()
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30 ", "epochs: 2 ")
    project("git", "commit", "-qam", "short")
    with postgresql() as database, s3() as keys:
        server = Server(other, database.address, f"s3://{BUCKET}/runs", **keys)
        server.start()
        project("dvc", "repro", MLFLOW_TRACKING_URI=server.uri)
        sweep = ["--name", "s", "--jobs", "2", "-S", "train.seed=1,2"]
        project("python", "-m", "tools.sweep", *sweep, MLFLOW_TRACKING_URI=server.uri)
        sync = ("python", "-m", "tools.sync", "workspace", "s-s1", "s-s2")
        project(*sync, MLFLOW_TRACKING_URI=server.uri)  # where this machine is too slow for a stage to wait
        assert project(*sync, MLFLOW_TRACKING_URI=server.uri).splitlines()[-1] == "in all: 3 in place"
        found = runs(server.uri)
        assert [run.info.status for run in found] == ["FINISHED"] * 3
        assert all("test/accuracy" in run.data.metrics and run.data.tags.get("journal") for run in found)
        assert "test/accuracy" in project(
            "python", "-m", "tools.compare", "s-s1", "s-s2", MLFLOW_TRACKING_URI=server.uri
        )
        assert EQUAL in project("python", "-m", "tools.rebuild", "s-s2", MLFLOW_TRACKING_URI=server.uri)
        server.kill()
        assert not (project.root / "mlflow.db").exists()
        assert not (project.root / "mlartifacts").exists()
        check_that_it_is_nowhere(database.password, project.root)

        # The database itself is for the server.
        project.edit("params.yaml", "epochs: 2 ", "epochs: 1 ")
        for command in ("dvc repro", "python -m tools.sync", "python -m tools.compare s-s1 s-s2"):
            printed = project(*command.split(), fails=True, MLFLOW_TRACKING_URI=database.address)
            assert "error: MLFLOW_TRACKING_URI: postgresql+psycopg://***@127.0.0.1:" in printed
            assert " is for MLflow's server (docs/sharing.md); accepted: " in printed
            assert database.password not in printed


@pytest.mark.slow
def test_an_experiment_before_the_remote(two: tuple[Project, Project]) -> None:
    project, clone = two
    project("dvc", "exp", "run", "--temp", "--name", "seed-1", "-S", "train.seed=1")
    assert "Pushed experiment seed-1" in project("dvc", "exp", "push", "origin", "seed-1")
    clone("dvc", "exp", "pull", "origin", "seed-1")
    said, last = sync(clone, "seed-1", fails=True)
    how = "and no DVC remote is set here: dvc remote add --local -d storage URL, and this again"
    assert said == f"seed-1: skipped, {LACKS}, {how}"
    assert last == "error: 1 skipped of 1, see above"

    # The remote is there now, and committed, and DVC still sends nothing to it.
    shell(project, TO_REMOTE)
    assert "uploaded" not in shell(project, TO_GIT)
    clone("git", "pull", "-q")
    said, _ = sync(clone, "seed-1", fails=True)
    storage = project.root.parent / "storage"
    found = re.fullmatch(
        rf"seed-1: skipped, DVC's cache lacks models/net.safetensors, plots, "
        rf"and so does the remote storage \({storage}\)\. "
        r"In the clone that has them: (dvc remote add --local -f -d storage .*)",
        said,
    )  # the prepared set is the commit's, too, and came with it
    assert found is not None, said
    advice = found[1].replace("GIT_REMOTE", "origin")
    said_there = (ROOT / "docs/sharing.md").read_text()
    assert said_there.count(f"`{advice.split(' && ')[0].replace(str(storage), 'URL')}`") == 1, "the page says so, too"
    assert "files uploaded" in shell(project, advice)
    said, last = sync(clone, "seed-1")
    assert said.startswith("seed-1: created, run ")
    assert last == "in all: 1 created"


@pytest.mark.slow
def test_a_commit_before_the_remote_and_remotes_without_a_default(two: tuple[Project, Project]) -> None:
    project, clone = two
    shell(clone, "dvc remote add --local storage URL")
    said, _ = sync(clone, "HEAD", fails=True)
    name, what = said.split(": ", 1)
    assert name == clone("git", "rev-parse", "HEAD").strip()[:9]
    default = "dvc remote default --local storage"
    assert what == (f"skipped, {LACKS}, and no DVC remote of storage is the default: {default}, and this again")
    shell(clone, default)
    said, _ = sync(clone, "HEAD", fails=True)
    advice = said.split("In the clone that has them: ")[1]
    assert advice.endswith(" && dvc push --all-commits")
    shell(project, advice)
    said, _ = sync(clone, "HEAD")
    assert said.startswith(f"{name}: created, run ")


@pytest.mark.slow
def test_another_cpu(two: tuple[Project, Project]) -> None:
    # As in a new user's clone: nobody has the files of the commit, and the sums round otherwise.
    first, project = two
    first.edit("params.yaml", "determinism: portable", "determinism: machine")
    first("bash", "-ec", "dvc repro && git commit -qam machine && git push -q origin HEAD")
    project("git", "pull", "-q")
    project("git", "config", "user.name", "test")
    project("git", "config", "user.email", "test@localhost")
    results = ("git", "checkout", "HEAD", "--", "params.yaml", "dvc.lock", "metrics")
    project("dvc", "repro", ATEN_CPU_CAPABILITY="default")
    assert "dvc.lock" in project("git", "diff", "--name-only"), "the two CPUs round alike"
    project(*results)
    assert "dvc_plots" not in project("dvc", "plots", "show"), "there is something to show, and README is wrong"

    project("dvc", "repro", ATEN_CPU_CAPABILITY="default")
    [command] = re.findall(r"commit that \(`(git commit .*)`\)", (ROOT / "README.md").read_text())
    shell(project, command)
    project(*results)
    project("dvc", "plots", "show")
    assert (project.root / "dvc_plots/index.html").is_file()
    said, last = sync(project, "HEAD")
    assert (said.split(": ")[1], last) == ("in place", "in all: 1 in place")

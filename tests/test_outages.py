"""MLflow's store fails, in all ways that were thought of: no result changes, and in the end it has every row as it was.

Some are tried once in `make soak`, all of them ten times in `make torture`, which prints the delays: pytest -s.
"""

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

import mlflow
import pytest

from stages.tracking.store import Store
from tests.conftest import Project
from tests.servers import Server
from tests.test_disks import on_disk
from tests.test_killed import outputs

EPOCHS = 100
REPRO = ("dvc", "repro", "--no-run-cache")
SYNC = ("python", "-m", "tools.sync")
WARNING = "warning: MLflow at "
# What differs between two equal trainings.
OWN_TAGS = {"directory", "journal", "journal.evaluation", "process", "training.id", "mlflow.runColor", "mlflow.user"}


def nothing(_server: Server) -> None:
    pass


@dataclass
class Outage:
    """What befalls a server: before a training, in its middle, and, for what lasted, after the evaluation."""

    before: Callable[[Server], None] = nothing
    middle: Callable[[Server], None] = nothing
    after: Callable[[Server], None] = nothing


def sends(number: int) -> Callable[[Server], None]:
    return lambda server: server.send(number)


OUTAGES = {
    "down at the start": Outage(before=Server.kill, after=Server.start),
    "killed, and back": Outage(middle=Server.restart),
    "killed, and not back": Outage(middle=Server.kill, after=Server.start),
    "stopped": Outage(middle=sends(signal.SIGSTOP), after=sends(signal.SIGCONT)),
    "stopped at the start": Outage(before=sends(signal.SIGSTOP), after=sends(signal.SIGCONT)),
    "answers 500": Outage(before=Server.answer_500, after=Server.come_back),
    "never answers": Outage(before=Server.answer_nothing, after=Server.come_back),
}


@pytest.fixture(scope="module")
def prepared(make_project: Callable[[], Project]) -> Project:
    """A project with prepared data and no result."""
    project = make_project()
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30 ", f"epochs: {EPOCHS} ")
    project("git", "commit", "-qam", "another training")
    project("dvc", "repro", "prepare")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "prepared")
    return project


@pytest.fixture
def copy(prepared: Project, tmp_path: Path) -> Callable[[], Project]:
    """Makes copies of that project."""
    numbers = iter(range(1000))
    return lambda: Project.at(shutil.copytree(prepared.root, tmp_path / f"copy-{next(numbers)}", symlinks=True))


@pytest.fixture(scope="module")
def server(make_project: Callable[[], Project]) -> Iterator[Server]:
    server = Server(make_project())
    server.start()
    yield server
    server.kill()


def ran(project: Project, middle: Callable[[], object] = lambda: None, **environment: str) -> tuple[str, float]:
    """Run the pipeline, with what happens when the training is going on; return what it printed, and the seconds."""
    started = time.monotonic()
    process = project.start(*REPRO, **environment)
    journals = project.root / ".repronet/journals"
    while process.poll() is None and not any(b'"points"' in path.read_bytes() for path in journals.glob("*/*.jsonl")):
        time.sleep(0.02)
    time.sleep(0.3)  # so that MLflow has some of it
    middle()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed, time.monotonic() - started


def row(uri: str, experiment: str, within: tuple[float, float], folder: Path) -> dict[str, Any]:
    """All that stands in the one run of an experiment, but for what two equal trainings differ in.

    All its times lie within these, in seconds since 1970.
    """
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    times = [point.timestamp for history in points.values() for point in history]
    for milliseconds in [*times, run.info.start_time, run.info.end_time]:
        assert within[0] - 1 <= milliseconds / 1000 <= within[1] + 1
    assert min(times) >= run.info.start_time
    client.download_artifacts(run.info.run_id, "", str(folder))
    assert run.outputs is not None
    assert run.inputs is not None
    [model] = client.search_logged_models([found.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name not in OWN_TAGS},
        "points": {
            name: [(point.step, point.value if "seconds/" not in name else 0) for point in history]
            for name, history in points.items()
        },
        "data": sorted((entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs),
        "artifacts": {
            str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "environment.json"
        },
    }


def two_syncs(project: Project, **environment: str) -> None:
    """Run sync twice at once."""
    processes = [project.start(*SYNC, **environment) for _ in range(2)]
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed


@dataclass
class Reference:
    """A training that nothing disturbs."""

    row: dict[str, Any]
    outputs: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(prepared: Project, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    project = Project.at(shutil.copytree(prepared.root, tmp_path_factory.mktemp("x") / "copy", symlinks=True))
    before = time.time()
    printed, seconds = ran(project, MLFLOW_TRACKING_URI=server.uri)
    assert WARNING not in printed
    assert not list((project.root / ".repronet/journals").iterdir())
    found = row(server.uri, "repronet", (before, time.time()), tmp_path_factory.mktemp("row"))
    return Reference(found, outputs((project.root / "dvc.lock").read_text()), seconds)


def check_outage(
    project: Project, server: Server, name: str, undisturbed: Reference, experiment: str, folder: Path
) -> float:
    """Train and evaluate in this outage; return how many seconds that took."""
    outage = OUTAGES[name]
    own = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    outage.before(server)
    before = time.time()
    printed, seconds = ran(project, lambda: outage.middle(server), **own)
    within = before, time.time()
    outage.after(server)
    assert outputs((project.root / "dvc.lock").read_text()) == undisturbed.outputs
    for stage in printed.split("Running stage 'evaluate'"):
        assert stage.count(WARNING) <= 1, printed
    if outage.after is not nothing:
        assert WARNING in printed
    two_syncs(project, **own)
    assert row(server.uri, experiment, within, folder) == undisturbed.row
    assert not list((project.root / ".repronet/journals").iterdir())
    return seconds


def report(name: str, seconds: list[float], usual: float) -> None:
    """Print by how much each took longer than usual, which is bounded."""
    longer = [each - usual for each in seconds]
    mean_longer, most = mean(longer), max(longer)
    print(f"{name}: {len(longer)} as undisturbed; {usual:.1f} s, {mean_longer:.1f} s longer, {most:.1f} s at most")
    assert max(longer) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed, and back", "stopped"])
def test_an_outage(
    copy: Callable[[], Project], server: Server, undisturbed: Reference, tmp_path: Path, name: str
) -> None:
    seconds = check_outage(copy(), server, name, undisturbed, name, tmp_path / "row")
    assert seconds - undisturbed.seconds < 40, "it does not hang; how long it takes is measured by make torture"


@pytest.mark.torture
@pytest.mark.parametrize("name", OUTAGES)
def test_ten_outages(
    copy: Callable[[], Project], server: Server, undisturbed: Reference, tmp_path: Path, name: str
) -> None:
    usual = min(ran(copy(), MLFLOW_TRACKING_URI=server.uri, MLFLOW_EXPERIMENT_NAME="usual")[1] for _ in range(3))
    seconds = []
    for number in range(10):
        project = copy()
        seconds.append(check_outage(project, server, name, undisturbed, f"{name} {number}", tmp_path / f"row-{number}"))
        shutil.rmtree(project.root)
    report(name, seconds, usual)


# Local stores: what is wrong with one, and what mends it, in the project's folder. The disk is of its own name space.
FULL = "size=1000k", ":", "mount -o remount,size=100m disk"
READ_ONLY = "size=100m", "cp mlflow.db disk && mount -o remount,ro disk", "mount -o remount,rw disk"
SCRIPT = """
{harm} || exit 1
dvc repro --no-run-cache || exit 1
touch ran
{mend} || exit 1
python -m tools.sync & python -m tools.sync && wait $!
code=$?
cp -r disk kept
exit $code
"""


def on_a_disk(project: Project, options: str, harm: str, mend: str) -> tuple[str, float]:
    started = time.time()
    (project.root / "disk").mkdir()
    script = SCRIPT.format(harm=harm, mend=mend)
    command = on_disk(options, project.root / "disk", project.root, "bash", "-c", script)
    printed = project(*command, MLFLOW_TRACKING_URI=f"sqlite:///{project.root}/disk/mlflow.db")
    return printed, (project.root / "ran").stat().st_mtime - started


def broken(project: Project) -> tuple[str, float]:
    (project.root / "mlflow.db").write_bytes(b"no database" * 1000)
    printed, seconds = ran(project)
    (project.root / "mlflow.db").unlink()
    two_syncs(project)
    return printed, seconds


def held(project: Project) -> tuple[str, float]:
    """Another process holds the database all the time."""
    holder = sqlite3.connect(project.root / "mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    printed, seconds = ran(project)
    holder.execute("rollback")
    holder.close()
    two_syncs(project)
    return printed, seconds


LOCAL: dict[str, Callable[[Project], tuple[str, float]]] = {
    "a full disk": lambda project: on_a_disk(project, *FULL),
    "a read-only disk": lambda project: on_a_disk(project, *READ_ONLY),
    "a broken database": broken,
    "a database that another process holds": held,
}


def check_local(project: Project, undisturbed: Reference, name: str) -> float:
    """Train and evaluate with this store; return how many seconds that took."""
    before = time.time()
    (project.root / ".git/info/exclude").write_text("disk\nkept\nran\nrow\n")
    project("python", "-c", "from stages.tracking.store import Store; Store.from_environment().client()")
    printed, seconds = LOCAL[name](project)
    for stage in printed.split("journal of")[0].split("Running stage 'evaluate'"):
        assert stage.count(WARNING) == 1, printed
    assert outputs((project.root / "dvc.lock").read_text()) == undisturbed.outputs
    kept = project.root / "kept/mlflow.db"
    uri = f"sqlite:///{kept if kept.exists() else project.root / 'mlflow.db'}"
    Store.from_environment({"MLFLOW_TRACKING_URI": uri}).client()  # where the artifacts are now, if it was moved
    assert row(uri, "repronet", (before, time.time()), project.root / "row") == undisturbed.row
    assert not list((project.root / ".repronet/journals").iterdir())
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a full disk", "a database that another process holds"])
def test_a_local_store(copy: Callable[[], Project], undisturbed: Reference, name: str) -> None:
    check_local(copy(), undisturbed, name)


@pytest.mark.torture
@pytest.mark.parametrize("name", LOCAL)
def test_ten_local_stores(copy: Callable[[], Project], undisturbed: Reference, name: str) -> None:
    usual = min(ran(copy())[1] for _ in range(3))
    seconds = []
    for _ in range(10):
        project = copy()
        seconds.append(check_local(project, undisturbed, name))
        shutil.rmtree(project.root)
    report(name, seconds, usual)

"""Sweeps on a cluster of Ray's: real nodes on this machine, each with a scratch and a DVC cache of its own.

Code goes by a bare repository, data by a directory as DVC's remote, and rows to a real server of MLflow.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from stages.base.errors import InputError
from stages.tracking.git import GitError, git
from stages.tracking.provenance import SWEEP_ATTEMPT_TAG
from stages.tracking.store import Store
from tests.conftest import Project, runs, wait_until
from tests.servers import Server
from tools.sweep.cluster import ClusterRunner, fitting
from tools.sweep.experiments import Ending, Phase, State
from tools.sweep.node import RETRIES, Trial, locked, remove_abandoned, scratch_folder
from tools.sweep.overrides import grid
from tools.sweep.plan import Plan
from tools.sweep.reach import check_reaches, dvc_settings, is_own
from tools.sweep.results import SweepRuns
from tools.sweep.template import Template

SWEEP = ["python", "-m", "tools.sweep", "--name", "far", "-S", "train.epochs=4", "-S", "train.threads=1"]


class Cluster:
    """A head without CPUs, and two nodes of one."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        small: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}
        self._ray = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self.address = self._ray.address
        self.scratches = [folder / f"node-{number}" for number in range(2)]
        self.nodes = []
        for scratch in self.scratches:
            own: dict[str, Any] = {"num_cpus": 1, "env_vars": {"REPRONET_SCRATCH": str(scratch)}, **small}
            self.nodes.append(self._ray.add_node(**own))

    def kill(self, number: int) -> None:
        """Kill a node, but for what its raylet has started, which has to end itself."""
        [raylet] = self.nodes[number].all_processes["raylet"]
        raylet.process.kill()

    def end(self) -> None:
        self._ray.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def project(make_project: Callable[[], Project], tmp_path: Path) -> Project:
    """A project with a remote of git and one of DVC."""
    project = make_project()
    project("git", "init", "-q", "--bare", str(tmp_path / "hub"))
    project("git", "remote", "add", "origin", str(tmp_path / "hub"))
    project("dvc", "remote", "add", "-q", "-d", "storage", str(tmp_path / "storage"))
    project("git", "commit", "-qam", "remote")
    return project


def refs(project: Project, repository: str) -> dict[str, str]:
    """The commits of the sweep's experiments in a repository, by their names."""
    listed = [line.split("\t") for line in project("git", "ls-remote", repository, "refs/exps/*").splitlines()]
    return {ref.rsplit("/", 1)[1]: commit for commit, ref in listed if "/far" in ref}


until = partial(wait_until, seconds=240)


def in_folder(folder: Path) -> list[str]:
    """What runs there."""
    return [
        " ".join(process.info["cmdline"] or [])
        for process in psutil.process_iter(["cwd", "cmdline"])
        if str(process.info["cwd"] or "").startswith(str(folder))
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(Project.at(tmp_path / "server"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.torture)])
def test_trials_whatever_dies(
    count: int, project: Project, make_project: Callable[[], Project], cluster: Cluster, server: Server
) -> None:
    """One of two nodes is killed, then the sweep; then comes the same command again."""
    seeds = ["-S", f"train.seed={','.join(map(str, range(count)))}"]
    command = [*SWEEP, *seeds, "--cluster", cluster.address]
    first = project.start(*command, MLFLOW_TRACKING_URI=server.uri)
    until(lambda: len(refs(project, "origin")) >= 1, process=first)
    cluster.kill(0)
    reached = len(refs(project, "origin"))
    until(lambda: len(refs(project, "origin")) > reached, process=first)
    until(lambda: not in_folder(cluster.scratches[0]), process=first)  # what a dead node ran ends by itself
    os.killpg(first.pid, signal.SIGKILL)
    print(first.communicate()[0])
    assert len(refs(project, "origin")) < count
    print(project(*command, MLFLOW_TRACKING_URI=server.uri))

    names = {f"far-s{seed}" for seed in range(count)}
    commits = refs(project, ".")
    assert commits.keys() == names
    assert refs(project, "origin") == commits
    rows = [run for run in runs(server.uri) if run.data.tags.get("sweep") == "far"]
    assert not [run for run in rows if run.info.status == "RUNNING"]
    finished = [run for run in rows if run.info.status == "FINISHED"]
    assert sorted(run.data.tags["dvc.exp_name"] for run in finished) == sorted(names)
    assert all("test/accuracy" in run.data.metrics for run in finished)
    said = project("python", "-m", "tools.sync", *names, MLFLOW_TRACKING_URI=server.uri)
    assert said.splitlines()[-1] == f"in all: {count} in place"
    assert list(cluster.scratches[1].glob("*/*/clone")) == []

    local = make_project()
    local(*SWEEP, *seeds, "--jobs", "2")
    here = refs(local, ".")
    for name, commit in commits.items():
        for file in ("metrics/evaluate.json", "metrics/train.csv", "dvc.lock"):
            assert project("git", "show", f"{commit}:{file}") == local("git", "show", f"{here[name]}:{file}"), name


@pytest.mark.slow
def test_what_is_stopped_and_what_fails(
    project: Project, cluster: Cluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    given = ["train.epochs=100000", "train.optimizer.lr=0.01,1e30", "train.threads=1", "train.log_system=0"]
    plan = Plan.of(given, None, "far", None)
    runner = ClusterRunner(plan, cluster.address, "origin")
    try:
        assert runner.room() == 2
        long, wrong = (plan.experiment(n, values, {}, ()).description for n, values in enumerate(grid(plan.axes)))
        for description in (long, wrong):
            runner.start(description)
        until(lambda: runner.poll(wrong.name) is Phase.ENDED)
        failed = runner.collect(wrong.name)
        assert (failed.state, failed.metrics) == (State.FAILED, None)
        assert failed.reason.startswith("error: the loss is nan at step 2, with a learning rate of ")
        assert "the loss is nan" in (project.root / f"sweeps/far/{wrong.name}.log").read_text()
        until(lambda: len(runner.report(long.name)) > 1)
        assert runner.poll(long.name) is Phase.TRAINING
        epochs = runner.report(long.name)
        assert [epoch for epoch, _ in epochs] == list(range(1, len(epochs) + 1))
        runner.stop(long.name)
        assert runner.collect(long.name) == Ending(State.FAILED, "it was stopped")
        assert [running for scratch in cluster.scratches for running in in_folder(scratch)] == []
        assert {run.info.status for run in runs(server.uri)} == {"KILLED", "FAILED"}
        runner.clear()
        assert refs(project, "origin") == {}
    finally:
        ray.shutdown()


@pytest.mark.torture
def test_remotes_that_are_away_and_a_folder_of_a_repository(
    project: Project,
    cluster: Cluster,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project("sh", "-c", "mkdir -p mono/sub; git mv $(git ls-files | grep -o '^[^/]*' | sort -u) mono/sub")
    project("git", "commit", "-qam", "moved")
    monkeypatch.chdir(project.root / "mono/sub")
    Path("new.txt").write_text("of the patch")
    project("git", "add", "mono/sub/new.txt")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    plan = Plan.of(["train.epochs=200", "train.optimizer.lr=0.01,0.02", "train.threads=1"], None, "far", None)
    runner = ClusterRunner(plan, cluster.address, "origin")
    storage = tmp_path / "storage"
    try:
        counted = runner._reports
        for number in range(1, RETRIES + 2):
            assert ray.get(counted.begin.remote("dying")) == number
        dying: dict[str, Any] = {"name": "dying", "patch": b"", "overrides": (), "environment": {}}
        ended = ray.get(runner._attempt.remote(Trial(**dying, **runner._common), counted))
        assert ended == {"reason": "4 attempts have died; perhaps no node has the memory"}
        first, second = (plan.experiment(n, values, {}, ()).description for n, values in enumerate(grid(plan.axes)))
        runner.start(first)
        until(lambda: runner.report(first.name))
        storage.write_text("no folder")
        until(lambda: runner.poll(first.name) is Phase.ENDED)
        failed = runner.collect(first.name)
        assert failed.state is State.FAILED
        assert failed.reason.startswith("dvc push failed: ")
        assert refs(project, "origin") == {}, "no commit whose files nobody has"
        storage.unlink()
        runner.start(first)
        until(lambda: runner.poll(first.name) is Phase.ENDED)
        assert runner.collect(first.name).state is State.DONE
        runner.start(second)
        until(lambda: runner.report(second.name))
        server.kill()
        until(lambda: runner.poll(second.name) is Phase.ENDED)
        server.start()
        assert runner.collect(second.name).state is State.DONE
        kept = capsys.readouterr().err.split(f"warning: {second.name}: MLflow lacks what its node has kept on ")[1]
        with_home = kept.split(": ")[1].split(";")[0]
        project("sh", "-c", f"cd mono/sub && {with_home}", MLFLOW_TRACKING_URI=server.uri)
        rows = [(run.data.tags["dvc.exp_name"], run.info.status) for run in runs(server.uri)]
        assert sorted(rows) == sorted((each.name, "FINISHED") for each in (first, second))
        assert refs(project, "origin").keys() == refs(project, ".").keys() == {first.name, second.name}
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("prepared", "arguments", "said"),
    [
        ("true", "127.0.0.1:1", "--cluster 127.0.0.1:1: no cluster is there: "),
        ("true", "head", "--cluster 'head': HOST:PORT is accepted, and auto for the cluster that runs here"),
        (
            "true",
            "127.0.0.1:1 --git-remote hub",
            "--git-remote 'hub': nodes get the code from a remote of git; accepted: origin",
        ),
        (
            "git remote remove origin",
            "127.0.0.1:1",
            "nodes get the code from a remote of git; there is none: ",
        ),
        (
            "dvc remote remove storage",
            "127.0.0.1:1",
            "nodes bring data and results to a remote of DVC, and none is the default",
        ),
        ("export MLFLOW_TRACKING_URI=sqlite:///own.db", "127.0.0.1:1", "nodes cannot reach MLflow at sqlite:///"),
    ],
)
def test_what_nodes_could_not_reach(project: Project, prepared: str, arguments: str, said: str) -> None:
    command = f"{prepared}; python -m tools.sweep -S train.seed=1,2 --cluster {arguments}"
    printed = project("bash", "-ec", command, MLFLOW_TRACKING_URI="http://127.0.0.1:1", fails=True)
    assert said in next(line for line in printed.splitlines() if line.startswith("error: "))
    assert "Traceback" not in printed


def test_files_that_no_node_would_have(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    (project.root / "data/raw/own").mkdir(parents=True)
    (project.root / "data/raw/own/a.png").write_bytes(b"a")
    plan = Plan.of(["train.seed=1"], None, "own", None)
    template = Template(project.root / "copy", [Path("data/raw/own")])
    with pytest.raises(InputError, match="nodes would lack what neither git nor DVC has: data/raw/own"):
        check_reaches(template.made(plan.experiment(0, {}, {}, ()).description))
    shutil.rmtree(project.root / "copy")
    check_reaches(Template(project.root / "copy", []).made(plan.experiment(0, {}, {}, ()).description))


def test_places_that_each_machine_has_for_itself() -> None:
    own = [
        "/home/me/storage",
        "file:///home/me",
        "http://127.0.0.1:5000",
        "http://me@localhost:9000/x",
        "ssh://[::1]/x",
    ]
    shared = ["s3://bucket/x", "git@example.org:me/x.git", "https://example.org", "ssh://example.org/home"]
    assert [place for place in own + shared if is_own(place)] == own


def test_what_fits_is_counted_by_nodes() -> None:
    nodes = [{"Resources": has} for has in ({"CPU": 2.0}, {"CPU": 7.0, "GPU": 1.0}, {"memory": 1.0})]
    assert fitting({"num_cpus": 2, "num_gpus": 0}, nodes) == 4
    assert fitting({"num_cpus": 3, "num_gpus": 0}, nodes) == 2
    assert fitting({"num_cpus": 2, "num_gpus": 1}, nodes) == 1
    assert fitting({"num_cpus": 8, "num_gpus": 0}, nodes) == 0


def test_a_password_of_git_s_remote_is_not_shown(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(GitError) as raised:
        git("ls-remote", "https://me:a-secret@127.0.0.1:1/hub.git")
    assert "127.0.0.1:1/hub.git" in str(raised.value)
    assert "a-secret" not in str(raised.value)


def test_what_an_attempt_left_is_removed_once_it_has_ended(tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / name / "clone").mkdir(parents=True)
        (tmp_path / name / "home").mkdir()
        (tmp_path / name / "lock").touch()
    with locked(tmp_path / "alive/lock") as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    remove_abandoned(tmp_path)
    assert (tmp_path / "alive/clone").exists(), "what it has started holds the lock"
    assert not (tmp_path / "dead/clone").exists()
    assert (tmp_path / "dead/home").exists(), "with its checkpoints"
    child.kill()
    child.wait()
    remove_abandoned(tmp_path)
    assert not (tmp_path / "alive/clone").exists()


def test_a_scratch_of_others_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("REPRONET_SCRATCH", raising=False)
    found = scratch_folder()
    assert found.stat().st_mode & 0o777 == 0o700
    found.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone; REPRONET_SCRATCH names another folder"):
        scratch_folder()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRONET_SCRATCH", "own")
    assert scratch_folder() == tmp_path / "own"


def test_nodes_get_no_secret_of_dvc_s_remote(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    project("dvc", "remote", "add", "-q", "--local", "-d", "team", "s3://bucket/data")
    for name, value in {"endpointurl": "https://s3.example.org", "secret_access_key": "a-secret"}.items():
        project("dvc", "remote", "modify", "-q", "--local", "team", name, value)
    found = dvc_settings()
    assert found.text.split("\n") == [
        "[core]",
        "    remote = team",
        "['remote \"team\"']",
        "    url = s3://bucket/data",
        "    endpointurl = https://s3.example.org",
        "",
    ]
    assert found.places == ["s3://bucket/data", "https://s3.example.org"]
    assert not found.has_shared_cache
    project("dvc", "cache", "dir", "-q", "/shared/cache")
    assert dvc_settings().has_shared_cache
    project("dvc", "remote", "add", "-q", "-f", "--local", "-d", "team", "https://me:a-secret@example.org")
    with pytest.raises(
        InputError, match=r"the DVC remote team has a password in its address, https://\*\*\*@example.org"
    ):
        dvc_settings()


def test_what_was_finished_twice_is_one_run(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ours = SweepRuns("far", "base", "us")
    store = Store.from_environment()
    made = {}
    for number, (owner, name) in enumerate([("us", "a"), ("us", "a"), ("us", "b"), ("them", "a"), ("them", "a")]):
        tags = {SWEEP_ATTEMPT_TAG: f"{owner}/{number}", "dvc.exp_name": name}
        run = store.client().create_run(store.experiment_id, 1000 + number, tags).info.run_id
        store.client().set_terminated(run, "FINISHED")
        made[run] = "FINISHED"
    made[next(iter(made))] = "KILLED"
    ours.end_superseded("a")
    assert {run.info.run_id: run.info.status for run in store.search()} == made

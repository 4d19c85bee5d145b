"""Sweeps with real experiments of DVC and a real store, whatever is killed."""

import hashlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stages.base.errors import InputError
from tests.conftest import Project, clean_environment
from tools.sweep.__main__ import Sweep
from tools.sweep.experiments import Experiment
from tools.sweep.plan import Plan
from tools.sweep.search import Search

SHORT = "train.epochs=2"


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Project:
    """A copy of the project in which the data are prepared."""
    project = make_project()
    project("dvc", "repro", "prepare")
    return project


def sweep(project: Project, *arguments: str, fails: bool = False) -> str:
    return project("python", "-m", "tools.sweep", *arguments, fails=fails)


def experiments(project: Project) -> set[str]:
    refs = project("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return {ref.rsplit("/", 1)[1] for ref in refs}


def prefix(project: Project) -> str:
    commit = project("git", "rev-parse", "HEAD").strip()
    return f"refs/exps/{commit[:2]}/{commit[2:]}/"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_twelve_experiments_whatever_is_killed(project: Project) -> None:
    command = ["python", "-m", "tools.sweep", "--name", "killed", "--jobs", "2", "-S", SHORT]
    command += ["-S", "train.optimizer.name=SGD,Adam", "-S", "train.optimizer.lr=0.01,0.03,0.1", "-S", "train.seed=0,1"]
    project.edit("README.md", "# Repronet\n", "# Repronet, changed\n")
    changes = project("git", "diff")
    left_before = files(project.root / ".dvc/tmp")

    seed = random.randrange(1000)
    print("random seed:", seed)
    chance = random.Random(seed)
    first = project.start(*command)
    copies = project.root / ".dvc/tmp/sweeps/killed"
    while not list(copies.glob("killed-*")):
        assert first.poll() is None
        time.sleep(0.2)
    time.sleep(chance.uniform(0, 12))
    running = [
        process
        for child in psutil.Process(first.pid).children()
        for process in [child, *child.children(recursive=True)]
        if process.cwd().startswith(str(copies))
    ]
    victim = chance.choice(running)
    print("killed:", victim.cmdline())
    victim.kill()
    time.sleep(chance.uniform(0, 12))
    first.kill()
    print(first.communicate()[0])

    # The second time on a terminal, which shows the live table.
    ours, theirs = pty.openpty()
    second = subprocess.Popen(
        command,
        cwd=project.root,
        env=clean_environment() | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = ""
    try:
        while text := os.read(ours, 100_000):
            shown += text.decode()
    except OSError:  # the other end was closed
        pass
    assert second.wait() == 0, shown
    assert re.search(r"sweep killed: \d+ of 12 done, 2 running.* left", shown)
    assert re.search(r"killed-\S+ +running +0:\d\d", shown)

    expected = {
        f"killed-{optimizer}-{lr}-s{seed}"
        for optimizer in ("SGD", "Adam")
        for lr in (0.01, 0.03, 0.1)
        for seed in (0, 1)
    }
    assert experiments(project) == expected
    runs = project.runs()
    finished = [run for run in runs if run.info.status == "FINISHED" and "test/accuracy" in run.data.metrics]
    assert sorted(run.info.run_name for run in finished) == sorted(expected)
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert {run.data.tags["sweep"] for run in runs} == {"killed"}
    for run in finished:
        assert f"killed-{run.data.params['train.optimizer.name']}-" in run.info.run_name
        assert run.data.params["train.threads"] == str(min(2, max(1, len(os.sched_getaffinity(0)) // 2)))
        assert run.data.tags["dvc.exp_name"] == run.info.run_name
        assert run.data.tags["dvc.baseline_rev"] == project("git", "rev-parse", "HEAD").strip()

    assert files(project.root / ".dvc/tmp") == left_before
    assert not (project.root / ".dvc/tmp/sweeps/killed").exists()
    assert files(project.root / "sweeps/killed") == ["lock", "plan.json"]
    assert project("git", "diff") == changes
    assert project("git", "stash", "list") == ""

    # What is printed in the end can be done.
    [name] = re.findall(r"dvc exp apply (\S+)", shown)
    validation = {run.info.run_name: run.data.metrics["best/valid_accuracy"] for run in finished}
    means = {(validation[f"{group}-s0"] + validation[f"{group}-s1"]) / 2 for group in {n[:-3] for n in validation}}
    assert (validation[f"{name[:-3]}-s0"] + validation[f"{name[:-3]}-s1"]) / 2 == max(means)
    assert validation[name] == max(validation[f"{name[:-3]}-s0"], validation[f"{name[:-3]}-s1"])
    project("git", "checkout", "-q", "README.md")


@pytest.mark.slow
def test_a_failed_experiment_is_tried_again_then_reported_and_does_no_harm(project: Project) -> None:
    # Not a number after some steps, for the one; the other is fine.
    output = sweep(
        project,
        "--name",
        "bad",
        "-S",
        SHORT,
        "-S",
        "train.optimizer.lr=1e30,0.01",
        "-S",
        "train.net.arguments.Net.output=logits",
        fails=True,
    )
    assert output.count("bad-1e_30 failed: error: the loss is nan at step ") == 2
    assert "bad-0.01: validation accuracy" in output
    assert re.search(r"^0\.01 +1 +0\.\d{4} +0\.\d{4}", output, re.MULTILINE)
    assert "failed: bad-1e_30  error: the loss is nan" in output
    assert "error: 1 failed; their output is in sweeps/bad. The same command tries them again." in output
    assert "the loss is nan" in (project.root / "sweeps/bad/bad-1e_30.log").read_text()


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_a_search_goes_on(project: Project) -> None:
    command = ["--name", "sea", "--search", "3", "-S", SHORT, "-S", "train.optimizer.lr=tag(log,interval(1e-3,1e-1))"]
    first = project.start("python", "-m", "tools.sweep", *command)
    while not (project.root / ".dvc/tmp/sweeps/sea/sea-00").exists():
        assert first.poll() is None
        time.sleep(0.2)
    time.sleep(6)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "stopping …" in output
    assert "The same command goes on from here." in output
    assert "Traceback" not in output
    assert not (project.root / ".dvc/tmp/sweeps/sea").exists()
    assert not [process for process in psutil.process_iter(["cmdline"]) if "--name=sea" in str(process.info["cmdline"])]

    output = sweep(project, *command)
    assert {name for name in experiments(project) if name.startswith("sea-")} == {"sea-00", "sea-01", "sea-02"}
    assert not [run for run in project.runs() if run.info.status == "RUNNING"]
    table = re.split(r"^sweep sea\s*$", output, flags=re.MULTILINE)[1]
    assert sweep(project, *command).endswith(table), "once more, there is nothing left to run"


@pytest.mark.parametrize(
    ("search", "overrides", "name", "message"),
    [
        (False, ["train.epochs=x"], None, r"train\.epochs: 'x', should be"),
        (False, ["train.seed=1,2,-3"], None, r"train\.seed: -3, should be"),
        (
            False,
            ["train.optimizer.lr=interval(0,1)"],
            None,
            "an interval can be searched, with --search N, but not listed",
        ),
        (False, ["train.seed=int(interval(1,5))"], None, "seeds are listed, not searched: train.seed=0,1,2"),
        (
            True,
            ["train.net.arguments.Net.dropout=interval(0,1.5)"],
            None,
            r"train\.net\.arguments\.Net\.dropout: 1\.5, should be",
        ),
        (
            True,
            ["prepare.source=digits,fashion_mnist"],
            None,
            "a search cannot compare accuracies on other validation images",
        ),
        (False, ["train.seed=1"], "a b", "--name 'a b': letters, digits and hyphens are accepted"),
        (False, ["train.seed=1"], "taken", "--name taken is a sweep with other baseline, overrides; take another name"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    search: bool,
    overrides: list[str],
    name: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(project.root)
    other = {"baseline": "", "changes": hashlib.sha256(b"").hexdigest(), "overrides": [], "search": False, "threads": 1}
    (project.root / "sweeps/taken").mkdir(parents=True, exist_ok=True)
    (project.root / "sweeps/taken/plan.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=message):
        Plan.of(overrides, 5 if search else None, name, jobs=1)


def test_the_plan_is_the_same_for_the_same_command(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    plan = Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=100)
    assert Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=1) == plan, "also what follows from jobs"
    assert plan.threads == 1
    assert Plan.of(["train.seed=1,2", "train.epochs=4"], None, None, jobs=1).name != plan.name
    project.edit("stages/nets/net.py", '"""The Net:', '"""A Net:')
    assert Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=1).name != plan.name
    project("git", "checkout", "-q", "stages/nets/net.py")


def test_wrong_arguments(project: Project) -> None:
    output = sweep(project, "-S", "train.seed=1", "--jobs", "0", fails=True)
    assert "argument --jobs: '0' is not a whole number above 0" in output


def test_what_falls_behind_is_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four trials were good; the fifth is a process that sleeps, and says in a real run how bad it is."""
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///pruned.db")
    plan = Plan.of(["train.optimizer.lr=interval(0.01,0.1)", "train.seed=1,2"], 5, "prune", jobs=1)
    sweep = Sweep(plan, project.root / "sweeps/prune", jobs=2, gpus=[], retries=1, timeout=0)
    assert isinstance(sweep._source, Search)
    for number in range(4):
        sweep._source.ask()
        assert not sweep._source.is_hopeless(number, 2, 0.9)
        sweep._source.tell(number, 0.9)
    sweep._source.ask()
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    for name in ("prune-04-s1", "prune-04-s2"):
        (project.root / ".dvc/tmp/sweeps/prune" / name).mkdir(parents=True)
        (project.root / "sweeps/prune" / f"{name}.log").touch()
    bad = Experiment("prune-04-s1", 4, {}, [], state="running", attempts=1, process=process)
    waiting = Experiment("prune-04-s2", 4, {}, [])
    sweep.experiments += [bad, waiting]
    sweep._used[bad.name] = sweep._free.pop()

    client = sweep._mirror._tracker.client()
    experiment = client.get_experiment_by_name("repronet")
    assert experiment is not None
    directory = project.root / ".dvc/tmp/sweeps/prune" / bad.name
    tags = {"sweep": "prune", "dvc.exp_name": bad.name, "directory": str(directory)}
    run = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    client.log_metric(run, "valid/accuracy", 0.1, step=1)
    sweep._prune()
    assert bad.state == "running", "the first epoch says little"
    client.log_metric(run, "valid/accuracy", 0.2, step=2)
    sweep._next_look = 0
    sweep._prune()
    assert (bad.state, waiting.state) == ("pruned", "pruned")
    assert bad.reason == "after epoch 2, validation accuracy 0.2000"
    assert process.returncode == -signal.SIGTERM
    assert client.get_run(run).info.status == "KILLED"
    assert len(sweep._free) == 2
    again = Search(plan.axes[:1], 5, project.root / "sweeps/prune/search.log")
    assert [proposal.pruned for _ in range(5) if (proposal := again.ask())] == [False, False, False, False, True]


def test_what_takes_too_long_is_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///slow.db")
    plan = Plan.of(["train.seed=1"], None, "long", jobs=1)
    sweep = Sweep(plan, project.root / "sweeps/long", jobs=1, gpus=[], retries=1, timeout=60)
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    started = time.monotonic() - 50
    slow = Experiment("long", 0, {}, [], state="running", attempts=2, started=started, process=process)
    (project.root / ".dvc/tmp/sweeps/long/long").mkdir(parents=True)
    (project.root / "sweeps/long/long.log").touch()
    sweep.experiments.append(slow)
    sweep._used[slow.name] = sweep._free.pop()
    sweep._look_at(slow)
    assert slow.state == "running"
    slow.started -= 20
    sweep._look_at(slow)
    assert (slow.state, slow.reason) == ("failed", "took longer than --timeout 1")
    assert process.returncode == -signal.SIGTERM
    assert not (project.root / ".dvc/tmp/sweeps/long/long").exists()


def test_an_experiment_of_that_name_with_other_params_is_not_taken_for_done(project: Project) -> None:
    project("git", "update-ref", f"{prefix(project)}other-s1", "HEAD")  # its params are those of the commit
    (project.root / "new.py").touch()
    output = sweep(project, "--name", "other", "-S", "train.seed=1,2", "-S", "train.epochs=1", fails=True)
    (project.root / "new.py").unlink()
    assert "warning: not in the experiments, since git does not track them: new.py" in output
    project("git", "update-ref", "-d", f"{prefix(project)}other-s1")
    assert "error: there is an experiment other-s1 with other params; dvc exp remove other-s1" in output


@pytest.mark.slow
def test_what_dvc_has_in_its_cache_gets_its_runs_and_the_best_is_registered(project: Project) -> None:
    values = ["-S", "train.seed=1,2", "-S", SHORT]
    first = sweep(project, "--name", "one", *values, "--register", "digits")
    second = sweep(project, "--name", "two", *values, "--register", "digits")
    [best] = re.findall(r"dvc exp apply (\S+)", first)
    assert f"digits@champion is now {best}, version 1, its first" in first
    assert second.count(": run in MLflow created, run ") == 2
    assert f"digits@champion stays {best}. {best.replace('one', 'two')} against {best}: " in second
    runs = {run.info.run_name: run for run in project.runs() if run.data.tags["sweep"] in ("one", "two")}
    assert sorted(runs) == ["one-s1", "one-s2", "two-s1", "two-s2"]
    for seed in ("s1", "s2"):
        ours, theirs = runs[f"one-{seed}"].data.metrics, runs[f"two-{seed}"].data.metrics
        assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    ("gpus", "jobs", "visible"),
    [(["3", "5"], 2, ["3", "5"]), (["3", "5"], 3, ["3", "5", "3"]), (["3"], 2, [None, None]), ([], 1, [None])],
)
def test_each_job_gets_a_gpu_where_there_are_several(
    project: Project, monkeypatch: pytest.MonkeyPatch, gpus: list[str], jobs: int, visible: list[str | None]
) -> None:
    monkeypatch.chdir(project.root)
    plan = Plan.of(["train.seed=1"], None, "gpus", jobs=1)
    sweep = Sweep(plan, project.root / "sweeps/gpus", jobs, gpus, retries=0, timeout=0)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in sweep._free] == visible

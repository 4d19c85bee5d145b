"""Sweeps with real experiments of DVC and a real store, whatever is killed."""

import os
import pty
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages.tracking.provenance import SWEEP_ATTEMPT_TAG
from tests.conftest import Project, clean_environment
from tests.tools.sweep.conftest import experiment
from tools.sweep.experiments import Description, Ending, Metrics, Phase, Runner, State
from tools.sweep.local import LocalRunner
from tools.sweep.plan import Plan
from tools.sweep.search import Search
from tools.sweep.sweep import Sweep

SHORT = "train.epochs=2"


@pytest.fixture(scope="module")
def prepared(make_project: Callable[[], Project]) -> Project:
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


@pytest.mark.torture
def test_twelve_experiments_whatever_is_killed(prepared: Project) -> None:
    command = ["python", "-m", "tools.sweep", "--name", "killed", "--jobs", "2", "-S", SHORT]
    command += ["-S", "train.optimizer.name=SGD,Adam", "-S", "train.optimizer.lr=0.01,0.03,0.1", "-S", "train.seed=0,1"]
    prepared.edit("README.md", "# Repronet\n", "# Repronet, changed\n")
    changes = prepared("git", "diff")
    left_before = files(prepared.root / ".dvc/tmp")

    seed = random.randrange(1000)
    print("random seed:", seed)
    chance = random.Random(seed)
    first = prepared.start(*command)
    copies = prepared.root / ".dvc/tmp/sweeps/killed"
    while not list(copies.glob("killed-*")):
        assert first.poll() is None
        time.sleep(0.2)
    time.sleep(chance.uniform(0, 12))
    running = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended
            if process.cwd().startswith(str(copies)):
                running.append(process)
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
        cwd=prepared.root,
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
    assert experiments(prepared) == expected
    runs = prepared.runs()
    finished = [run for run in runs if run.info.status == "FINISHED" and "test/accuracy" in run.data.metrics]
    assert sorted(run.info.run_name for run in finished) == sorted(expected)
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert {run.data.tags["sweep"] for run in runs} == {"killed"}
    for run in finished:
        assert f"killed-{run.data.params['train.optimizer.name']}-" in run.info.run_name
        assert run.data.params["train.threads"] == str(min(2, max(1, len(os.sched_getaffinity(0)) // 2)))
        assert run.data.tags["dvc.exp_name"] == run.info.run_name
        assert run.data.tags["dvc.baseline_rev"] == prepared("git", "rev-parse", "HEAD").strip()

    assert files(prepared.root / ".dvc/tmp") == left_before
    assert not (prepared.root / ".dvc/tmp/sweeps/killed").exists()
    assert files(prepared.root / "sweeps/killed") == ["lock", "plan.json"]
    assert prepared("git", "diff") == changes
    assert prepared("git", "stash", "list") == ""

    # What is printed in the end can be done.
    [name] = re.findall(r"dvc exp apply (\S+)", shown)
    validation = {run.info.run_name: run.data.metrics["best/valid_accuracy"] for run in finished}
    means = {(validation[f"{group}-s0"] + validation[f"{group}-s1"]) / 2 for group in {n[:-3] for n in validation}}
    assert (validation[f"{name[:-3]}-s0"] + validation[f"{name[:-3]}-s1"]) / 2 == max(means)
    assert validation[name] == max(validation[f"{name[:-3]}-s0"], validation[f"{name[:-3]}-s1"])
    prepared("git", "checkout", "-q", "README.md")


@pytest.mark.slow
def test_a_failed_experiment_is_tried_again_then_reported_and_does_no_harm(prepared: Project) -> None:
    # Not a number after some steps, for the one; the other is fine.
    output = sweep(
        prepared,
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
    assert "the loss is nan" in (prepared.root / "sweeps/bad/bad-1e_30.log").read_text()


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_a_search_goes_on(prepared: Project) -> None:
    command = ["--name", "sea", "--search", "3", "-S", SHORT, "-S", "train.optimizer.lr=tag(log,interval(1e-3,1e-1))"]
    first = prepared.start("python", "-m", "tools.sweep", *command)
    while not (prepared.root / ".dvc/tmp/sweeps/sea/sea-00").exists():
        assert first.poll() is None
        time.sleep(0.2)
    time.sleep(6)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "stopping …" in output
    assert "The same command goes on from here." in output
    assert "Traceback" not in output
    assert not (prepared.root / ".dvc/tmp/sweeps/sea").exists()
    assert not [process for process in psutil.process_iter(["cmdline"]) if "--name=sea" in str(process.info["cmdline"])]

    output = sweep(prepared, *command)
    assert {name for name in experiments(prepared) if name.startswith("sea-")} == {"sea-00", "sea-01", "sea-02"}
    assert not [run for run in prepared.runs() if run.info.status == "RUNNING"]
    table = re.split(r"^sweep sea\s*$", output, flags=re.MULTILINE)[1]
    assert sweep(prepared, *command).endswith(table), "once more, there is nothing left to run"


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_is_closed_ends_a_sweep_unless_nohup_started_it(prepared: Project, ignored: bool) -> None:
    name = f"hup{ignored:d}"
    command = ["python", "-m", "tools.sweep", "--name", name, "-S", SHORT, "-S", "train.seed=3"]
    process = prepared.start(*["nohup"] * ignored, *command)
    while not (prepared.root / f".dvc/tmp/sweeps/{name}/{name}").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (0 if ignored else 130), output
    assert (name in experiments(prepared)) == ignored
    assert "Traceback" not in output
    assert not (prepared.root / f".dvc/tmp/sweeps/{name}").exists()
    assert not [run for run in prepared.runs() if run.info.status == "RUNNING"]


@pytest.mark.slow
def test_what_dvc_has_in_its_cache_gets_its_runs_and_the_best_is_registered(prepared: Project) -> None:
    values = ["-S", "train.seed=1,2", "-S", SHORT]
    first = sweep(prepared, "--name", "one", *values, "--register", "digits")
    second = sweep(prepared, "--name", "two", *values, "--register", "digits")
    [best] = re.findall(r"dvc exp apply (\S+)", first)
    assert f"digits@champion is now {best}, version 1, its first" in first
    assert second.count(": run in MLflow created, run ") == 2
    assert f"digits@champion stays {best}. {best.replace('one', 'two')} against {best}: " in second
    runs = {run.info.run_name: run for run in prepared.runs() if run.data.tags["sweep"] in ("one", "two")}
    assert sorted(runs) == ["one-s1", "one-s2", "two-s1", "two-s2"]
    for seed in ("s1", "s2"):
        ours, theirs = runs[f"one-{seed}"].data.metrics, runs[f"two-{seed}"].data.metrics
        assert {name: ours[name] for name in theirs} == theirs


def test_an_experiment_of_that_name_with_other_params_is_not_taken_for_done(project: Project) -> None:
    project("git", "update-ref", f"{prefix(project)}other-s1", "HEAD")  # its params are those of the commit
    (project.root / "new.py").touch()
    output = sweep(project, "--name", "other", "-S", "train.seed=1,2", "-S", "train.epochs=1", fails=True)
    (project.root / "new.py").unlink()
    assert "warning: not in the experiments, since git does not track them: new.py" in output
    project("git", "update-ref", "-d", f"{prefix(project)}other-s1")
    assert "error: there is an experiment other-s1 with other params; dvc exp remove other-s1" in output


class FakeRunner(Runner):
    """Runs nothing: says what it is told to."""

    def __init__(self, endings: dict[str, list[Ending]]) -> None:
        self.endings, self.started, self.running = endings, list[str](), set[str]()
        self.phases: dict[str, Phase] = {}
        self.cleared, self.interrupted = 0, ""

    def start(self, description: Description) -> None:
        self.started.append(description.name)
        self.running.add(description.name)

    def poll(self, name: str) -> Phase:
        if name == self.interrupted:
            raise KeyboardInterrupt
        return self.phases.get(name, Phase.ENDED)

    def report(self, _name: str) -> list[tuple[int, float]]:
        return []

    def stop(self, name: str) -> None:
        pass

    def collect(self, name: str) -> Ending:
        self.running.remove(name)
        return self.endings[name].pop(0)

    def check(self, description: Description, commit: str) -> None:
        pass

    def clear(self) -> None:
        self.cleared += 1


GOOD, BAD = Ending(State.DONE, metrics=Metrics(0.9, 0.1, 0.8)), Ending(State.FAILED, "error: the loss is nan")


@pytest.fixture
def without_waiting(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("tools.sweep.sweep.POLL_SECONDS", 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a sweep that ends early ignores signals from then on


def states(sweep: Sweep) -> dict[str, str]:
    return {experiment.name: experiment.state for experiment in sweep.experiments}


@pytest.mark.usefixtures("without_waiting")
def test_what_fails_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.of(["train.seed=1,2,3"], None, "tries", jobs=1)
    runner = FakeRunner({"tries-s1": [BAD, GOOD], "tries-s2": [BAD, BAD], "tries-s3": [GOOD]})
    sweep = Sweep(plan, runner, jobs=1, retries=1, timeout=0)
    sweep.run()
    assert runner.started == ["tries-s1", "tries-s1", "tries-s2", "tries-s2", "tries-s3"]
    assert states(sweep) == {"tries-s1": "done", "tries-s2": "failed", "tries-s3": "done"}
    assert capsys.readouterr().out.count("tries-s2 failed: error: the loss is nan") == 2
    assert runner.cleared == 2


@pytest.mark.usefixtures("without_waiting")
def test_data_are_prepared_by_one_for_all() -> None:
    plan = Plan.of(["prepare.seed=5,6", "train.seed=1,2"], None, "data", jobs=1)
    names = [f"data-{data}-s{seed}" for data in (5, 6) for seed in (1, 2)]
    runner = FakeRunner({name: [GOOD] for name in names})
    sweep = Sweep(plan, runner, jobs=4, retries=0, timeout=0)
    runner.phases = dict.fromkeys(names, Phase.PREPARING)
    sweep._start_some()
    assert runner.started == ["data-5-s1"], "the next configuration comes when all of this one have started"
    runner.phases["data-5-s1"] = Phase.TRAINING
    sweep._poll(sweep.experiments[0])
    sweep._start_some()
    assert runner.started == ["data-5-s1", "data-5-s2", "data-6-s1"]
    runner.phases = {}
    sweep.run()
    assert set(states(sweep).values()) == {"done"}


@pytest.mark.usefixtures("without_waiting")
def test_an_interrupted_sweep_ends_what_is_running(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.of(["train.seed=1,2"], None, "stop", jobs=1)
    runner = FakeRunner({"stop-s1": [GOOD]})
    sweep = Sweep(plan, runner, jobs=1, retries=0, timeout=0)
    runner.interrupted = "stop-s2"
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert states(sweep) == {"stop-s1": "done", "stop-s2": "waiting"}
    assert runner.cleared == 2
    output = capsys.readouterr().out
    assert "stopping …" in output
    assert "sweep stop: 1 of 2 done, 0 running" in output
    assert "The same command goes on from here." in output


def local_sweep(
    project: Project, monkeypatch: pytest.MonkeyPatch, plan: Plan, **options: Any
) -> tuple[Sweep, LocalRunner]:
    """A sweep whose experiments sleep in real processes."""
    monkeypatch.setattr("tools.sweep.local.DVC", ["sh", "-c", "sleep 600"])
    (project.root / ".dvc/tmp/sweeps" / plan.name / ".template").mkdir(parents=True)
    runner = LocalRunner(plan.name, plan.baseline, options["jobs"], gpus=[])
    return Sweep(plan, runner, **options), runner


def test_what_falls_behind_is_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four trials were good; the fifth is a process that sleeps, and says in a real run how bad it is."""
    monkeypatch.chdir(project.root)
    plan = Plan.of(["train.optimizer.lr=interval(0.01,0.1)", "train.seed=1,2"], 5, "prune", jobs=1)
    sweep, runner = local_sweep(project, monkeypatch, plan, jobs=2, retries=1, timeout=0)
    assert isinstance(sweep._source, Search)
    for number in range(4):
        sweep._source.ask()
        assert not sweep._source.is_hopeless(number, 2, 0.9)
        sweep._source.tell(number, 0.9)
    sweep._source.ask()
    bad, waiting = experiment("prune-04-s1", 4), experiment("prune-04-s2", 4)
    sweep.experiments += [bad, waiting]
    bad.change(State.RUNNING)
    runner.start(bad.description)
    process = runner._processes[bad.name]

    store = runner.runs._store
    client = store.client()
    attempt = f"{(project.root / 'sweeps/prune/owner').read_text()}/1"
    tags = {"sweep": "prune", "dvc.exp_name": bad.name, SWEEP_ATTEMPT_TAG: attempt}
    run = client.create_run(store.experiment_id, tags=tags).info.run_id
    client.log_metric(run, "valid/accuracy", 0.1, step=1)
    sweep._prune()
    assert bad.state is State.RUNNING, "the first epoch says little"
    client.log_metric(run, "valid/accuracy", 0.2, step=2)
    sweep._next_report = 0
    sweep._prune()
    assert (bad.state, waiting.state) == (State.PRUNED, State.PRUNED)
    assert bad.ending == Ending(State.PRUNED, "after epoch 2, validation accuracy 0.2000")
    assert process.returncode == -signal.SIGTERM
    assert client.get_run(run).info.status == "KILLED"
    assert len(runner._free) == 2
    again = Search(plan.axes[:1], 5, project.root / "sweeps/prune/search.log")
    assert [proposal.pruned for _ in range(5) if (proposal := again.ask())] == [False, False, False, False, True]


def test_what_takes_too_long_is_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    plan = Plan.of(["train.seed=1"], None, "long", jobs=1)
    sweep, runner = local_sweep(project, monkeypatch, plan, jobs=1, retries=0, timeout=60)
    slow = experiment("long")
    sweep.experiments.append(slow)
    slow.change(State.RUNNING)
    runner.start(slow.description)
    process = runner._processes["long"]
    slow.started -= 50
    sweep._poll(slow)
    assert slow.ending is None
    slow.started -= 20
    sweep._poll(slow)
    assert slow.ending == Ending(State.FAILED, "took longer than --timeout 1")
    assert states(sweep) == {"long": "failed"}
    assert process.returncode == -signal.SIGTERM
    assert not (project.root / ".dvc/tmp/sweeps/long/long").exists()

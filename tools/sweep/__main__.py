"""Sweep: many experiments, several at once. Whatever fails or is killed, the same command goes on where it stopped.

    python -m tools.sweep --jobs 2 -S train.optimizer.name=SGD,Adam -S train.seed=0,1,2
    python -m tools.sweep --search 20 -S 'train.optimizer.lr=tag(log,interval(1e-4,1e-1))' -S train.batch_size=32,64

Overrides are those of `dvc exp run -S`; every combination of their values is run. With --search, Optuna chooses from
the values and intervals, and trainings that fall behind are stopped. Each experiment is an ordinary one of DVC, and a
run in MLflow with the tag `sweep`. In the end the configurations stand in a table, the best by validation first, with
mean and 95 % interval over the seeds where there are several: -S train.seed=0,1,2.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from stages.base import cli
from stages.base.errors import InputError
from stages.tracking import provenance
from stages.tracking.store import Store
from tools import recorded
from tools.runs import Runs, SweepRuns
from tools.sweep import experiments, overrides
from tools.sweep.champion import challenge
from tools.sweep.experiments import Experiment
from tools.sweep.plan import FOLDER, SEED, THREADS, Plan
from tools.sweep.progress import Progress, report
from tools.sweep.search import Grid, Search
from tools.sync import Sync

COPIES = Path(".dvc/tmp/sweeps")  # of the repository, for each sweep; DVC does not look for stages there
POLL_SECONDS, MIRROR_SECONDS = 0.2, 2.0


def main() -> None:
    parser = cli.parser("tools.sweep", __doc__)
    parser.add_argument("-S", "--set-param", metavar="KEY=VALUES", action="append", default=[], dest="overrides")
    parser.add_argument("--name", help="begins the experiments' names; by default it follows from overrides and code")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="experiments at once; by default one a GPU, else 1")
    parser.add_argument("--search", type=_positive, metavar="N", help="N configurations that Optuna chooses, no grid")
    parser.add_argument("--retries", type=_whole, default=1, metavar="N", help="of an experiment that fails; default 1")
    parser.add_argument("--register", metavar="MODEL", help="make the best MODEL@champion if it beats the present one")
    parser.add_argument("--timeout", type=_positive, metavar="MINUTES", help="stop an experiment that takes longer")
    arguments = parser.parse_args()
    if not arguments.overrides:
        parser.error("give at least one -S KEY=VALUES")
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # the terminal was closed
    gpus = _gpus()
    jobs = arguments.jobs or len(gpus) or 1
    plan = Plan.of(arguments.overrides, arguments.search, arguments.name, jobs)
    folder = FOLDER / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            sweep = Sweep(plan, folder, jobs, gpus, arguments.retries, 60 * (arguments.timeout or 0))
            sweep.run()
            best = report(plan.name, sweep.experiments)
            if best and arguments.register:
                sweep.register(best, arguments.register)
    except Timeout as error:
        raise InputError(f"the sweep {plan.name} is running already") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr if isinstance(error.stderr, str) else (error.stderr or b"").decode(errors="replace")
        raise InputError(f"{' '.join(error.cmd)} failed: {reason.strip()}") from error
    if failed := [experiment for experiment in sweep.experiments if experiment.state == "failed"]:
        raise InputError(f"{len(failed)} failed; their output is in {folder}. The same command tries them again.")


class Sweep:
    """Runs the plan's experiments, `jobs` at once, each on a GPU of its own where there are several."""

    def __init__(self, plan: Plan, folder: Path, jobs: int, gpus: Sequence[str], retries: int, timeout: float) -> None:
        self._plan, self._folder, self._retries, self._timeout = plan, folder, retries, timeout
        self._copies = COPIES / plan.name
        self._template = self._copies / ".template"
        self._mirror = SweepRuns(plan.name, plan.baseline, self._copies)
        varied = [axis for axis in plan.axes if axis.name != SEED]
        self._seeds = next((axis for axis in plan.axes if axis.name == SEED), None)
        self._source = Search(varied, plan.search, folder / "search.log") if plan.search else Grid(varied)
        self.experiments: list[Experiment] = []
        total = self._source.size * (len(self._seeds.values) if self._seeds else 1)
        self._progress = Progress(plan.name, total, jobs, self.experiments)
        self._environment = {provenance.SWEEP: plan.name, "MLFLOW_TRACKING_URI": self._mirror.uri}
        if jobs > 1:
            self._environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait actively would take others' cores
        # What each of `jobs` slots adds to its experiment's environment.
        self._free = [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if len(gpus) > 1 else {} for job in range(jobs)]
        self._used: dict[str, dict[str, str]] = {}
        self._ready: set[tuple[str, ...]] = {()} if Path("data/prepared").exists() else set()
        self._next_look = 0.0

    def run(self) -> None:
        """Run what has not been run yet. On Ctrl-C, stop what is running and leave nothing of it."""
        self._end_leftovers()
        end_abandoned()
        experiments.copy_repository(self._template, self._plan.baseline, self._plan.changes)
        self._progress.say(f"sweep {self._plan.name}: {self._progress.total} experiments, {len(self._free)} at once")
        if left_out := experiments.untracked(".", ":(exclude)data/raw", ":(exclude)data/weights"):
            self._progress.say(f"warning: not in the experiments, since git does not track them: {', '.join(left_out)}")
        if self._plan.threads:
            self._progress.say(
                f"{THREADS}={self._plan.threads} for each: it is part of their params, and their results"
            )
        with self._progress:
            try:
                while self._start_some() or self._running():
                    time.sleep(POLL_SECONDS)
                    for experiment in self._running():
                        self._look_at(experiment)
                    self._prune()
            except BaseException as error:
                # The end takes its time, but not for ever, so it is not to be interrupted again.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                self._progress.say("stopping …")
                self._end_leftovers()
                if isinstance(error, KeyboardInterrupt):
                    self._progress.say(f"{self._progress.summary()}. The same command goes on from here.")
                raise
        shutil.rmtree(self._copies)
        self._log_what_was_cached()

    def _log_what_was_cached(self) -> None:
        """Give a run to the experiments that ran nothing, since DVC took every stage from its cache."""
        lacking = {experiment.name for experiment in self.experiments if experiment.state == "done"}
        lacking -= self._mirror.evaluated().keys()
        results = [result for result in recorded.experiments() if result.name in lacking]
        if not results:
            return
        try:
            sync = Sync(Store.from_environment(), dry_run=False)
            for result in results:
                if result.baseline == self._plan.baseline:
                    outcome, detail = sync.outcome(replace(result, sweep=self._plan.name))
                    self._progress.say(f"{result.name}: run in MLflow {outcome}{detail}")
        except InputError as error:
            self._progress.say(f"warning: {error}")

    def register(self, best: str, model: str) -> None:
        """Let the experiment `best` challenge the champion of the registered model `model`."""
        runs = Runs()
        found = self._mirror.evaluated().get(best)
        if found is None:
            raise InputError(f"{best} has no run in MLflow at {runs.uri}, so it cannot be registered")
        self._progress.say(challenge(runs, model, runs.find(found)))

    def _end_leftovers(self) -> None:
        """End what is running of this sweep, be it of an earlier process that was killed, and clean up after it."""
        experiments.stop(experiments.left_running(self._copies))
        for experiment in self._running():
            experiment.state = "waiting"
        for folder in self._copies.glob("*"):
            if folder != self._template:
                with suppress(InputError):
                    experiments.collect(folder.name, self._plan.baseline, folder)  # if it had just ended
        shutil.rmtree(self._copies, ignore_errors=True)
        self._mirror.close_running()

    def _running(self) -> list[Experiment]:
        return [experiment for experiment in self.experiments if experiment.state == "running"]

    def _start_some(self) -> bool:
        """Fill the free slots, and return whether there was something to start."""
        started = False
        while self._free and (experiment := self._next()):
            environment = self._used[experiment.name] = self._free.pop()
            folder = self._copies / experiment.name
            shutil.copytree(self._template, folder, symlinks=True)
            experiment.state, experiment.started = "running", time.monotonic()
            experiment.attempts += 1
            experiment.process = experiments.start(
                experiment.name, experiment.overrides, folder, self._log(experiment), self._environment | environment
            )
            started = True
        return started

    def _next(self) -> Experiment | None:
        """Return an experiment to start, None where there is none or all have to wait."""
        while True:
            busy = {experiment.prepared for experiment in self._running()} - self._ready
            for experiment in self.experiments:
                # Of those that share prepared data, one makes it first, and the others take it from DVC's cache.
                if experiment.state == "waiting" and experiment.prepared not in busy:
                    return experiment
            if any(experiment.state == "waiting" for experiment in self.experiments):
                return None
            proposal = self._source.ask()
            if proposal is None:
                return None
            revisions = experiments.revisions(self._plan.baseline)
            for seed in self._seeds.values if self._seeds else ("",):
                experiment = self._experiment(proposal.number, proposal.values, seed)
                experiment.state = "pruned" if proposal.pruned else "waiting"
                if revision := revisions.get(experiment.name):
                    self._check(experiment, revision)
                    experiment.state, experiment.outcome = "done", experiments.outcome(revision)
                    self._log(experiment).unlink(missing_ok=True)
                self.experiments.append(experiment)
            self._settle(proposal.number)

    def _check(self, experiment: Experiment, revision: str) -> None:
        """Raise InputError unless an experiment that is there is what would be run."""
        expected = overrides.check(experiment.overrides, self._template / "params.yaml")
        same = {"params": experiments.params_of(revision) == expected}
        same["code"] = experiments.same_code(revision, self._template)
        if not all(same.values()):
            other = " and ".join(name for name, equal in same.items() if not equal)
            raise InputError(
                f"there is an experiment {experiment.name} with other {other};"
                f" dvc exp remove {experiment.name}, or take another --name"
            )

    def _experiment(self, number: int, values: dict[str, str], seed: str) -> Experiment:
        assigned = {**values, **({self._seeds.key: seed} if self._seeds else {})}
        if self._plan.threads:
            assigned[THREADS] = str(self._plan.threads)
        varied = {
            axis.name: values[axis.key] for axis in self._plan.axes if axis.name != SEED and len(axis.values) != 1
        }
        words = [f"{number:02}"] if self._plan.search else list(varied.values())
        if self._seeds and len(self._seeds.values) > 1:
            words.append(f"s{seed}")
        words = [re.sub(r"[^A-Za-z0-9.]+|\.\.+", "_", word).strip("_.") or "none" for word in words]
        name = "-".join([self._plan.name, *words])
        if len(name) > 80 or name in [experiment.name for experiment in self.experiments]:
            name = f"{self._plan.name}-{len(self.experiments):03}"
        return Experiment(name, number, varied, [f"{key}={value}" for key, value in assigned.items()])

    def _look_at(self, experiment: Experiment) -> None:
        """Take note of what became of a running experiment."""
        assert experiment.process is not None
        log = self._log(experiment)
        if experiment.prepared not in self._ready and re.search(
            r"^(Running stage|Stage) 'train'", log.read_text(errors="replace"), re.M
        ):
            self._ready.add(experiment.prepared)
        took = time.monotonic() - experiment.started
        if experiment.process.poll() is None:
            if self._timeout and took > self._timeout:
                self._end(experiment, "failed", f"took longer than --timeout {self._timeout / 60:g}")
            return
        # Where DVC itself was killed, its stage goes on.
        self._end(experiment, "failed", "")

    def _end(self, experiment: Experiment, state: str, reason: str) -> None:
        """End a running experiment, if it still runs, and note its outcome, or `state` where there is none."""
        assert experiment.process is not None
        experiments.stop([experiment.process.pid])
        code = experiment.process.wait()
        revision = experiments.collect(experiment.name, self._plan.baseline, self._copies / experiment.name)
        shutil.rmtree(self._copies / experiment.name)
        self._free.append(self._used.pop(experiment.name))
        experiment.seconds = time.monotonic() - experiment.started
        if revision:
            experiment.state, experiment.outcome = "done", experiments.outcome(revision)
            self._log(experiment).unlink()
            self._progress.say(f"{experiment.name}: {experiment.outcome} in {experiment.seconds:.0f} s")
        else:
            self._mirror.close_running(experiment.name)
            experiment.state, experiment.reason = state, reason or _reason(self._log(experiment), code)
            self._progress.say(f"{experiment.name} {state}: {experiment.reason}")
            if state == "failed" and experiment.attempts <= self._retries:
                experiment.state = "waiting"
        self._settle(experiment.number)

    def _settle(self, number: int) -> None:
        """Tell the source what came of a configuration, once all of its experiments have ended."""
        group = self._of(number)
        if all(experiment.state in ("done", "failed", "pruned") for experiment in group):
            values = [experiment.outcome.valid_accuracy for experiment in group if experiment.outcome]
            mean = sum(values) / len(values) if len(values) == len(group) else None
            self._source.tell(number, mean, pruned=any(experiment.state == "pruned" for experiment in group))

    def _prune(self) -> None:
        """Stop the configurations that have no hope, by the validation accuracy of their first seed so far."""
        # Epoch 5 of 5 is not to be compared with epoch 5 of 30, where the learning rate is still high.
        fixed_length = all(len(axis.values) == 1 for axis in self._plan.axes if axis.name == "train.epochs")
        if not isinstance(self._source, Search) or not fixed_length or time.monotonic() < self._next_look:
            return
        for number in {experiment.number for experiment in self._running()}:
            first, *others = self._of(number)
            epochs = self._mirror.new_epochs(first.name) if first.state == "running" else []
            for epoch, accuracy in epochs:
                if self._source.is_hopeless(number, epoch, accuracy):
                    reason = f"after epoch {epoch}, validation accuracy {accuracy:.4f}"
                    for other in others:
                        if other.state == "waiting":
                            other.state, other.reason = "pruned", reason
                        elif other.state == "running":
                            self._end(other, "pruned", reason)
                    self._end(first, "pruned", reason)
                    break
        self._next_look = time.monotonic() + MIRROR_SECONDS

    def _of(self, number: int) -> list[Experiment]:
        return [experiment for experiment in self.experiments if experiment.number == number]

    def _log(self, experiment: Experiment) -> Path:
        return self._folder / f"{experiment.name}.log"


def end_abandoned() -> None:
    """End what runs of other sweeps that were killed and will not be run again, since the code is another now."""
    for copies in COPIES.glob("*"):
        lock = FOLDER / copies.name / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(lock, timeout=0):
            experiments.stop(experiments.left_running(copies))
            shutil.rmtree(copies, ignore_errors=True)
            SweepRuns(copies.name, "", copies).close_running()


def _reason(log: Path, code: int) -> str:
    """Return the line of an experiment's output that says why it failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or [
        line for line in lines if line.startswith("ERROR")
    ]
    return errors[0] if errors else f"dvc exited with {code}"


def _gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES has for the GPUs in reach."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return (
        visible[: torch.cuda.device_count()] if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    return 0 if text == "0" else _positive(text)


if __name__ == "__main__":
    cli.run(main)

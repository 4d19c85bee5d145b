"""The sweep itself: which experiment starts when, and what follows from how it ended."""

import os
import time
from pathlib import Path

from stages.base.errors import listed
from stages.base.processes import ignore_signals
from stages.tracking.data_in_git import going_into_git
from stages.tracking.git import untracked
from tools.sweep.experiments import Ending, Experiment, Phase, Runner, State
from tools.sweep.plan import FOLDER, THREADS, Plan
from tools.sweep.progress import Progress
from tools.sweep.results import commits_of, metrics_of
from tools.sweep.search import Grid, Search

POLL_SECONDS, REPORT_SECONDS = 0.2, 2.0


class Sweep:
    """Runs the plan's experiments, `jobs` at once.

    One that fails is tried again, `retries` times; one that takes longer than `timeout` seconds, without what it waits
    for a place, fails (0: no limit).
    """

    def __init__(self, plan: Plan, runner: Runner, jobs: int, retries: int, timeout: float) -> None:
        self._plan, self._runner, self._jobs, self._retries, self._timeout = plan, runner, jobs, retries, timeout
        journal = FOLDER / plan.name / "search.log"
        self._source = Search(plan.searched, plan.search, journal) if plan.search else Grid(plan.searched)
        self.experiments: list[Experiment] = []
        self._progress = Progress(plan.name, self._source.size * len(plan.seeds), jobs, self.experiments)
        # Prepared data that DVC's cache has, as Experiment.prepared.
        self._ready: set[tuple[str, ...]] = {()} if Path("data/prepared").exists() else set()
        # Epoch 5 of 5 is not to be compared with epoch 5 of 30, where the learning rate is still high.
        fixed_length = all(len(axis.values) == 1 for axis in plan.axes if axis.name == "train.epochs")
        self._prunes, self._next_report = plan.search is not None and fixed_length, 0.0

    def run(self) -> None:
        """Run what has not been run yet. On Ctrl-C, stop what is running and leave nothing of it."""
        say = self._progress.say
        self._runner.clear()
        total = self._progress.total
        say(f"sweep {self._plan.name}: {total} experiment{'s' * (total != 1)}, {self._jobs} at once")
        for path in self._plan.inputs:
            if said := going_into_git(path, os.environ):
                say(f"warning: {said}")
        data = (f":(exclude,literal){path}" for path in self._plan.inputs if not path.is_absolute())
        if left_out := untracked(".", ":(exclude)data", ":(exclude)stages", *data):
            say(f"warning: not in the experiments, since git does not track them: {listed(left_out)}")
        if self._plan.threads:
            say(f"{THREADS}={self._plan.threads} for each: it is part of their params, and their results")
        with self._progress.live():
            try:
                self._start_some()
                while self._in(State.RUNNING):
                    time.sleep(POLL_SECONDS)
                    for experiment in self._in(State.RUNNING):
                        self._poll(experiment)
                    self._prune()
                    self._start_some()
            except BaseException as error:
                ignore_signals()
                say("stopping …")
                self._runner.clear()
                for experiment in self._in(State.RUNNING):
                    experiment.change(State.WAITING)
                if isinstance(error, KeyboardInterrupt):
                    say(f"{self._progress.summary()}. The same command goes on from here.")
                raise
        self._runner.clear()

    def _in(self, state: State) -> list[Experiment]:
        return [experiment for experiment in self.experiments if experiment.state is state]

    def _of(self, number: int) -> list[Experiment]:
        return [experiment for experiment in self.experiments if experiment.number == number]

    def _start_some(self) -> None:
        at_once = self._runner.room() or self._jobs
        while len(self._in(State.RUNNING)) < at_once and (experiment := self._next()):
            experiment.change(State.RUNNING)
            self._runner.start(experiment.description)

    def _next(self) -> Experiment | None:
        """Return an experiment to start, None where there is none or all have to wait."""
        while not (waiting := self._in(State.WAITING)):
            if not self._propose():
                return None
        # Of those that share prepared data, one makes it first, and the others take it from DVC's cache.
        busy = {experiment.prepared for experiment in self._in(State.RUNNING)} - self._ready
        return next((experiment for experiment in waiting if experiment.prepared not in busy), None)

    def _propose(self) -> bool:
        """Add the experiments of the next configuration, and return whether there is one."""
        proposal = self._source.ask()
        if proposal is None:
            return False
        commits = commits_of(self._plan.baseline)
        for seed in self._plan.seeds:
            taken = [experiment.name for experiment in self.experiments]
            experiment = self._plan.experiment(proposal.number, proposal.values, seed, taken)
            if commit := commits.get(experiment.name):
                self._runner.check(experiment.description, commit)
                experiment.end(Ending(State.DONE, metrics=metrics_of(commit)))
            elif proposal.pruned:
                experiment.end(Ending(State.PRUNED))
            self.experiments.append(experiment)
        self._tell(proposal.number)
        return True

    def _poll(self, experiment: Experiment) -> None:
        """Take note of what became of a running experiment."""
        phase = self._runner.poll(experiment.name)
        if phase is Phase.QUEUED:
            experiment.started = time.monotonic()
        if phase is Phase.TRAINING:
            self._ready.add(experiment.prepared)
        if phase is Phase.ENDED:
            self._collect(experiment)
        elif self._timeout and time.monotonic() - experiment.started > self._timeout:
            self._collect(experiment, Ending(State.FAILED, f"took longer than --timeout {self._timeout / 60:g}"))

    def _collect(self, experiment: Experiment, stopped: Ending | None = None) -> None:
        """Take note of how an experiment ended: as `stopped`, if the sweep stops it now and it has no results yet."""
        if stopped:
            self._runner.stop(experiment.name)
        ending = self._runner.collect(experiment.name)
        if stopped and ending.state is not State.DONE:
            ending = stopped
        experiment.end(ending)
        if ending.metrics:
            self._ready.add(experiment.prepared)
            self._progress.say(f"{experiment.name}: {ending.metrics} in {experiment.seconds:.0f} s")
        else:
            self._progress.say(f"{experiment.name} {ending.state}: {ending.reason}")
        if ending.state is State.FAILED and experiment.attempts <= self._retries:
            experiment.change(State.WAITING)
        self._tell(experiment.number)

    def _tell(self, number: int) -> None:
        """Tell the source what came of a configuration, once all of its experiments have ended."""
        group = self._of(number)
        if not any(experiment.state in (State.WAITING, State.RUNNING) for experiment in group):
            values = [e.ending.metrics.valid_accuracy for e in group if e.ending and e.ending.metrics]
            mean = sum(values) / len(values) if len(values) == len(group) else None
            self._source.tell(number, mean, pruned=any(experiment.state is State.PRUNED for experiment in group))

    def _prune(self) -> None:
        """Stop the configurations that have no hope, by the validation accuracy of their first seed so far."""
        if not self._prunes or time.monotonic() < self._next_report:
            return
        for number in {experiment.number for experiment in self._in(State.RUNNING)}:
            first = self._of(number)[0]
            if first.state is State.RUNNING and (reason := self._hopeless(first)):
                # The first one last: by then all of the configuration have ended, and the search is told.
                for experiment in reversed(self._of(number)):
                    if experiment.state is State.WAITING:
                        experiment.end(Ending(State.PRUNED, reason))
                    elif experiment.state is State.RUNNING:
                        self._collect(experiment, Ending(State.PRUNED, reason))
        self._next_report = time.monotonic() + REPORT_SECONDS

    def _hopeless(self, experiment: Experiment) -> str:
        """Tell the search the epochs that it does not know yet. Return why it gives the experiment up, or ""."""
        for epoch, accuracy in self._runner.report(experiment.name)[experiment.epochs :]:
            experiment.epochs += 1
            if self._source.is_hopeless(experiment.number, epoch, accuracy):
                return f"after epoch {epoch}, validation accuracy {accuracy:.4f}"
        return ""

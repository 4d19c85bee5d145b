"""Experiments as tasks of a Ray cluster, each in a clone on the node that Ray gives it.

Ray decides where and when they run, and runs those again whose node died. Code comes to a node from git's remote and
data from DVC's, and so the results come back: the experiment's commit, and the files that it names.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.base.errors import InputError, listed
from stages.base.params import Params
from stages.base.processes import AUTO, interrupt_on_signals, thread_count
from stages.base.text import shown_url, warn
from stages.tracking.git import GitError, git, prefix
from tools.sweep import node, overrides
from tools.sweep.copies import identity
from tools.sweep.experiments import Description, Ending, Phase, Runner, State
from tools.sweep.local import COPIES
from tools.sweep.plan import FOLDER, Plan
from tools.sweep.reach import check_reaches, dvc_settings, is_own, send_commit, send_data, url_of
from tools.sweep.results import SweepRuns, commits_of, metrics_of, owner_of, taken
from tools.sweep.template import Template

FETCH_PAUSES = (2.0, 10.0, 0.0)  # seconds, between tries
ANSWER_SECONDS = 10.0  # in which a cluster takes a connection
STOP_SECONDS = node.GRACE_SECONDS + 10


class ClusterRunner(Runner):
    """Runs the experiments of a plan on the cluster at `address`, by way of git's remote `git_remote`.

    Raises InputError where the cluster cannot be reached, or its nodes could not reach code, data or MLflow.
    """

    def __init__(self, plan: Plan, address: str, git_remote: str, jobs: int | None = None) -> None:
        """With `jobs`, that many are run at once, else as many as fit."""
        self._plan, self._remote, self._jobs, self._logs = plan, git_remote, jobs, FOLDER / plan.name
        self._template = Template(COPIES / plan.name / ".template", plan.inputs)
        self._owner = owner_of(plan.name)
        self.runs = SweepRuns(plan.name, plan.baseline, self._owner)
        if not self.runs.uri.startswith(("http://", "https://")):
            raise InputError(
                f"--cluster: nodes cannot reach MLflow at {self.runs.uri}; MLFLOW_TRACKING_URI=http://… names a server,"
                " see docs/server.md"
            )
        dvc, repository = dvc_settings(), url_of(git_remote)
        self._mlflow = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        self._ray = connected(address)
        # Where its node dies it comes back on another, and the trials tell it all that they have told before.
        reports = self._ray.remote(node.Reports).options(name=f"reports of {plan.name}", num_cpus=0, max_restarts=-1)
        self._reports, self._attempt = reports.remote(), self._ray.remote(node.attempt)
        self._tasks: dict[str, Any] = {}
        self._descriptions: dict[str, Description] = {}
        self._began: set[str] = set()
        nodes = self._nodes()
        for params in plan.examples:
            if not fitting(wanted := self._resources(params), nodes):
                raise InputError(f"--cluster: an experiment needs {shown(wanted)}, and no node has them")
        if len({each["NodeManagerAddress"] for each in nodes}) > 1:
            storage = {params.prepare.shards_to for params in plan.examples} - {None}
            for place in filter(is_own, [self.runs.uri, repository, *dvc.places, *map(str, storage)]):
                warn(f"warning: {shown_url(place)} is each node's own, unless it is a folder that they share")
        self._common: dict[str, Any] = {
            "repository": repository,
            "baseline": plan.baseline,
            "source": send_commit(plan.baseline, git_remote),
            "project": str(prefix()),
            "settings": {key: identity(key) for key in ("user.name", "user.email")},
            "dvc": dvc.text,
            "has_shared_cache": dvc.has_shared_cache,
            "owner": self._owner,
        }

    def room(self) -> int | None:
        if self._jobs:
            return None
        return fitting(self._resources(self._plan.examples[0]), self._nodes())

    def start(self, description: Description) -> None:
        name = description.name
        if not self._descriptions:
            check_reaches(self._template.made(description) / prefix())
            send_data(self._plan.inputs)
        self._descriptions[name] = description
        trial = node.Trial(
            name=name,
            patch=description.patch,
            overrides=tuple(description.overrides),
            environment={**self._mlflow, **description.environment},
            **self._common,
        )
        resources = self._resources(overrides.check(description.overrides))
        options = {**resources, "max_retries": node.RETRIES, "name": name}
        self._began.discard(name)
        self._reports.forget.remote(name)
        self._tasks[name] = self._attempt.options(**options).remote(trial, self._reports)

    def poll(self, name: str) -> Phase:
        if self._ray.wait([self._tasks[name]], timeout=0)[0]:
            return Phase.ENDED
        if name not in self._began and self._reported(name) is not None:
            self._began.add(name)
        # Those that share prepared data wait for each other on their node.
        return Phase.TRAINING if name in self._began else Phase.QUEUED

    def report(self, name: str) -> list[tuple[int, float]]:
        return self._reported(name) or []

    def stop(self, name: str) -> None:
        self._stop([self._tasks[name]])

    def collect(self, name: str) -> Ending:
        outcome, log = self._outcome(name), self._logs / f"{name}.log"
        self.runs.close_running(name)
        try:
            if "commit" in outcome:
                self._fetch(name)
                self.check(self._descriptions[name], outcome["commit"])
                log.unlink(missing_ok=True)
                if "left" in outcome:
                    warn(f"warning: {name}: MLflow lacks what its node has kept {outcome['left']}")
                return Ending(State.DONE, metrics=metrics_of(outcome["commit"]))
        except InputError as error:  # git's remote is away, or another clone's sweep has made this name its own
            there = f"on the remote: dvc exp remove -g {self._remote} {name}"
            outcome = {"reason": f"{error} ({there})"}
        log.write_text(outcome.get("output", ""), encoding="utf-8")
        return Ending(State.FAILED, outcome["reason"])

    def check(self, description: Description, commit: str) -> None:
        self._template.check(description, commit)

    def clear(self) -> None:
        self._stop(list(self._tasks.values()))
        self._tasks.clear()
        try:  # what a sweep that was killed has not brought here
            there = git("ls-remote", self._remote, f"{self._prefix}{self._plan.name}-*").splitlines()
            names = {line.split("\t")[1].removeprefix(self._prefix) for line in there}
            for name in names - commits_of(self._plan.baseline).keys():
                self._fetch(name)
        except GitError as error:
            warn(f"warning: what has ended by now is not brought here; the same command does it. {error}")
        shutil.rmtree(COPIES / self._plan.name, ignore_errors=True)
        self.runs.close_running()

    @property
    def _prefix(self) -> str:
        return f"refs/exps/{self._plan.baseline[:2]}/{self._plan.baseline[2:]}/"

    def _outcome(self, name: str) -> Mapping[str, str]:
        """Return what the task of an experiment that has ended says, or Ray of it."""
        try:
            outcome: dict[str, str] = self._ray.get(self._tasks.pop(name), timeout=STOP_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            return {"reason": f"its node has not ended it within {STOP_SECONDS:g} s"}
        except self._ray.exceptions.TaskCancelledError:
            return {"reason": "it was stopped"}
        except self._ray.exceptions.RayTaskError as error:
            return {"reason": str(error.cause), "output": shown_url(str(error))}
        except self._ray.exceptions.RayError as error:
            return {"reason": str(error).splitlines()[0], "output": str(error)}
        return outcome

    def _fetch(self, name: str) -> None:
        """Bring an experiment from the remote. Raises InputError if there is another of its name, or git fails."""
        ref = f"{self._prefix}{name}"
        for pause in FETCH_PAUSES:
            try:
                git("fetch", "-q", "--no-tags", self._remote, f"{ref}:{ref}")
                break
            except GitError as error:
                if name in commits_of(self._plan.baseline):
                    raise taken(name, "results") from error
                if not pause:
                    raise
                time.sleep(pause)
        self.runs.end_superseded(name)

    def _reported(self, name: str) -> list[tuple[int, float]] | None:
        """Return the epochs so far of an experiment, None if it has not begun, as far as is known."""
        with suppress(self._ray.exceptions.RayError):
            found: list[tuple[int, float]] | None = self._ray.get(self._reports.of.remote(name), timeout=5)
            return found
        return None

    def _stop(self, tasks: list[Any]) -> None:
        """End tasks: with time for a stage to close its run, then for good."""
        for force in (False, True):
            for task in tasks:
                self._ray.cancel(task, force=force)
            if tasks:
                _, tasks = self._ray.wait(tasks, num_returns=len(tasks), timeout=STOP_SECONDS)

    def _nodes(self) -> list[dict[str, Any]]:
        return [each for each in self._ray.nodes() if each["Alive"]]

    def _resources(self, params: Params) -> dict[str, int]:
        """Return what Ray is to keep free for an experiment. Raises InputError if that does not follow from it."""
        threads = self._plan.threads or params.train.threads
        if threads == AUTO:
            raise InputError(
                "train.threads: 'auto' differs from node to node; on a cluster it is a number: -S train.threads=2"
            )
        processes = params.train.processes
        has_gpus = params.train.device != "cpu" and self._ray.cluster_resources().get("GPU", 0) > 0
        return {
            "num_cpus": thread_count(threads) * processes,
            "num_gpus": processes if has_gpus else 0,
        }


NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}


def fitting(wanted: Mapping[str, int], nodes: Iterable[Mapping[str, Any]]) -> int:
    """Return how many experiments that want these resources fit on nodes, as Ray describes them."""
    numbers = {NAMES[name]: number for name, number in wanted.items() if number}
    return sum(min(int(node["Resources"].get(name, 0) // n) for name, n in numbers.items()) for node in nodes)


def shown(wanted: Mapping[str, int]) -> str:
    return listed(f"{number} {NAMES[name]}s" for name, number in wanted.items() if number)


def connected(address: str) -> Any:
    """Return Ray, connected to a cluster. Raises InputError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--cluster needs Ray: pip install -c constraints.txt -e '.[cluster]'") from error
    check_answers(address)
    try:
        code = {"py_modules": [str(Path(__file__).parents[2] / name) for name in ("stages", "tools")]}
        ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:  # Ray says no address, none there, another version
        raise InputError(f"--cluster {address}: {error}") from error
    interrupt_on_signals()  # which Ray has set otherwise
    return ray


def check_answers(address: str) -> None:
    """Raise InputError if nothing listens there: Ray would wait for it without an end."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--cluster {address!r}: HOST:PORT is accepted, and auto for the cluster that runs here")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--cluster {address}: no cluster is there: {error}") from error

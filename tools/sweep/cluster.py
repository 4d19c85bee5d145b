"""Experiments as tasks of a Ray cluster, each in a clone on the node that Ray gives it.

Ray decides where and when they run, and runs those again whose node died. Code comes to a node from git's remote and
data from DVC's, and so the results come back: the experiment's commit, and the files that it names.
"""

import logging
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.base.errors import InputError, listed
from stages.base.params import Params
from stages.base.processes import AUTO, interrupt_on_signals, thread_count
from stages.tracking.git import GitError, git, prefix, untracked
from tools.sweep import node, overrides
from tools.sweep.copies import identity
from tools.sweep.experiments import Description, Ending, Phase, Runner, State
from tools.sweep.local import COPIES
from tools.sweep.plan import FOLDER, Plan
from tools.sweep.results import SweepRuns, commits_of, metrics_of, owner_of, taken
from tools.sweep.template import Template

RETRIES = 3  # of an experiment whose node died
ANSWER_SECONDS = 10.0  # in which a cluster takes a connection
STOP_SECONDS = node.GRACE_SECONDS + 10
OF_REMOTE = ("url", "endpointurl", "region", "profile", "user", "port")  # what of DVC's remote is no secret


class ClusterRunner(Runner):
    """Runs the experiments of a plan on the cluster at `address`, by way of git's remote `git_remote`.

    Raises InputError where the cluster cannot be reached, or its nodes could not reach code, data or MLflow.
    """

    def __init__(self, plan: Plan, address: str, git_remote: str) -> None:
        self._plan, self._remote, self._logs = plan, git_remote, FOLDER / plan.name
        self._template = Template(COPIES / plan.name / ".template", plan.inputs)
        self._owner = owner_of(plan.name)
        self.runs = SweepRuns(plan.name, plan.baseline, self._owner)
        if not self.runs.uri.startswith(("http://", "https://")):
            raise InputError(
                f"--cluster: nodes cannot reach MLflow at {self.runs.uri}; MLFLOW_TRACKING_URI=http://… names a server,"
                " see docs/server.md"
            )
        repository, source = reachable(plan.baseline, git_remote)
        dvc, has_shared_cache = dvc_settings()
        self._common: dict[str, Any] = {
            "repository": repository,
            "baseline": plan.baseline,
            "source": source,
            "project": str(prefix()),
            "settings": {key: identity(key) for key in ("user.name", "user.email")},
            "dvc": dvc,
            "has_shared_cache": has_shared_cache,
            "owner": self._owner,
        }
        self._mlflow = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        self._ray = connected(address)
        self._reports = self._ray.remote(node.Reports).options(name=f"reports of {plan.name}", num_cpus=0).remote()
        self._attempt = self._ray.remote(node.attempt)
        self._tasks: dict[str, Any] = {}
        self._is_checked = False

    def room(self, params: Params) -> int:
        """Return how many experiments with these params the cluster has room for."""
        has, wanted = self._ray.cluster_resources(), self._resources(params)
        number = min(int(has.get(ray_name, 0) // wanted[name]) for name, ray_name in NAMES.items() if wanted[name])
        if not number:
            raise InputError(f"--cluster: it has {shown(has)}, and an experiment needs {wanted}")
        return number

    def start(self, description: Description) -> None:
        if not self._is_checked:
            check_reaches(self._template.made(description) / prefix())
            self._is_checked = True
        trial = node.Trial(
            name=description.name,
            patch=description.patch,
            overrides=tuple(description.overrides),
            environment={**self._mlflow, **description.environment},
            **self._common,
        )
        resources = self._resources(overrides.check(description.overrides))
        options = {**resources, "max_retries": RETRIES, "name": description.name}
        self._tasks[description.name] = self._attempt.options(**options).remote(trial, self._reports)

    def poll(self, name: str) -> Phase:
        ended, _ = self._ray.wait([self._tasks[name]], timeout=0)
        # Those that share prepared data wait for each other on their node.
        return Phase.ENDED if ended else Phase.TRAINING

    def report(self, name: str) -> list[tuple[int, float]]:
        with suppress(self._ray.exceptions.RayError):  # its node died, and it comes back on another
            found: list[tuple[int, float]] = self._ray.get(self._reports.of.remote(name), timeout=5)
            return found
        return []

    def stop(self, name: str) -> None:
        task = self._tasks[name]
        for force in (False, True):
            self._ray.cancel(task, force=force)
            if self._ray.wait([task], timeout=STOP_SECONDS)[0]:
                return

    def collect(self, name: str) -> Ending:
        outcome = self._outcome(name)
        if "commit" in outcome:
            self._fetch(f"{self._prefix}{name}")
            self.runs.end_superseded(name)
            (self._logs / f"{name}.log").unlink(missing_ok=True)
        self.runs.close_running(name)
        if "commit" in outcome:
            return Ending(State.DONE, metrics=metrics_of(outcome["commit"]))
        (self._logs / f"{name}.log").write_text(outcome.get("output", ""), encoding="utf-8")
        return Ending(State.FAILED, outcome["reason"])

    def check(self, description: Description, commit: str) -> None:
        self._template.check(description, commit)

    def clear(self) -> None:
        for name in list(self._tasks):
            self.stop(name)
            self._tasks.pop(name)
        # What a sweep that was killed has not brought here.
        for line in git("ls-remote", self._remote, f"{self._prefix}{self._plan.name}-*").splitlines():
            commit, ref = line.split("\t")
            if commits_of(self._plan.baseline).get(ref.removeprefix(self._prefix)) != commit:
                self._fetch(ref)
        shutil.rmtree(COPIES / self._plan.name, ignore_errors=True)
        self.runs.close_running()

    @property
    def _prefix(self) -> str:
        return f"refs/exps/{self._plan.baseline[:2]}/{self._plan.baseline[2:]}/"

    def _outcome(self, name: str) -> Mapping[str, str]:
        """Return what the task of an experiment that has ended says, or Ray of it."""
        try:
            outcome: dict[str, str] = self._ray.get(self._tasks.pop(name))
        except self._ray.exceptions.TaskCancelledError:
            return {"reason": "it was stopped"}
        except self._ray.exceptions.RayTaskError as error:
            return {"reason": str(error.cause), "output": str(error)}
        except self._ray.exceptions.RayError as error:
            return {"reason": str(error).splitlines()[0], "output": str(error)}
        return outcome

    def _fetch(self, ref: str) -> None:
        """Bring an experiment from the remote. Raises InputError if there is another of its name."""
        name = ref.removeprefix(self._prefix)
        try:
            git("fetch", "-q", "--no-tags", self._remote, f"{ref}:{ref}")
        except GitError as error:
            if name in commits_of(self._plan.baseline):
                raise taken(name, "results") from error
            raise

    def _resources(self, params: Params) -> dict[str, int]:
        """Return what Ray is to keep free for an experiment. Raises InputError if that does not follow from it."""
        if params.train.threads == AUTO:
            raise InputError(
                "train.threads: 'auto' differs from node to node; on a cluster it is a number: -S train.threads=2"
            )
        processes = params.train.processes
        has_gpus = params.train.device != "cpu" and self._ray.cluster_resources().get("GPU", 0) > 0
        return {
            "num_cpus": thread_count(params.train.threads) * processes,
            "num_gpus": processes if has_gpus else 0,
        }


NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}


def shown(resources: Mapping[str, float]) -> str:
    return listed(f"{resources.get(name, 0):g} {name}s" for name in NAMES.values())


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


def reachable(baseline: str, remote: str) -> tuple[str, str]:
    """Let git's remote have the commit; return the remote's URL, and the ref that has it there. Raises InputError."""
    if remote not in (remotes := git("remote").split()):
        accepted = f"accepted: {listed(remotes)}" if remotes else "there is none: git remote add origin URL"
        raise InputError(f"--git-remote {remote!r}: nodes get the code from a remote of git; {accepted}")
    url, ref = git("ls-remote", "--get-url", remote).strip(), f"refs/repronet/baselines/{baseline}"
    git("push", "-q", remote, f"{baseline}:{ref}")
    return str(Path(url).resolve()) if Path(url).exists() else url, ref


def dvc_settings() -> tuple[str, bool]:
    """Return what .dvc/config.local has on a node, and whether .dvc/config names a cache that nodes share.

    Raises InputError if there is no remote.
    """
    from dvc.config import Config

    config = Config.from_cwd(validate=False)
    name = config["core"].get("remote")
    if not name or name not in config["remote"]:
        raise InputError(
            "--cluster: nodes bring data and results to a remote of DVC, and none is the default:"
            " dvc remote add -d storage URL"
        )
    lines = [f"    {key} = {config['remote'][name][key]}" for key in OF_REMOTE if key in config["remote"][name]]
    text = "\n".join(["[core]", f"    remote = {name}", f"['remote \"{name}\"']", *lines, ""])
    return text, "dir" in Config.from_cwd(validate=False).read("repo").get("cache", {})


def check_reaches(template: Path) -> None:
    """Raise InputError if experiments here would have files that neither git nor DVC has, so that no node does."""
    own = (":(exclude).dvc/config.local", ":(exclude).dvc/tmp", ":(exclude).dvc/cache")
    if missing := untracked(".", *own, folder=template, ignored=True):
        raise InputError(f"--cluster: nodes would lack what neither git nor DVC has: {listed(missing, 5)}")

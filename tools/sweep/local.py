"""Experiments as processes of this machine, each in a copy of the repository that nobody else works in.

`dvc exp run --temp` makes such copies, too, but puts the user's uncommitted changes aside for a moment whenever it
starts. Where it is killed in that moment, they stay aside, and git stays locked. Here whatever is killed, wherever, is
lost with its copy, and an experiment sees the code as it was when the sweep began, whatever is edited meanwhile.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from stages.base.dvc import OWNER, identity
from stages.base.errors import InputError
from stages.base.experiment import SWEEP, home
from stages.start import client
from stages.tracking.git import GitError, git, prefix
from stages.tracking.provenance import SWEEP_ATTEMPT
from tools.sweep.copies import DVC
from tools.sweep.experiments import Description, Ending, Phase, Runner, State
from tools.sweep.plan import FOLDER
from tools.sweep.results import SweepRuns, commits_of, metrics_of, owner_of, taken
from tools.sweep.template import Template

COPIES = Path(".dvc/tmp/sweeps")  # of the repository, for each sweep; DVC does not look for stages there
GRACE_SECONDS = 20.0  # what an interrupted experiment has to close its run


class LocalRunner(Runner):
    """Runs up to `jobs` experiments of a sweep at once. What one prints is in NAME.log until it is done.

    They start from the commit `baseline`, and read the `inputs`, files or folders of the user. Where there are several
    `gpus`, each experiment sees one of them.
    """

    def __init__(
        self, sweep: str, baseline: str, jobs: int, gpus: Sequence[str], inputs: Collection[Path] = ()
    ) -> None:
        self._copies, self._logs, self._baseline = COPIES / sweep, FOLDER / sweep, baseline
        self._template = Template(self._copies / ".template", inputs)
        # A stage calls plain `python`, which has to be this one, whether or not its environment is activated.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {
            "PATH": path,
            "REPRONET_HOME": str(home(os.environ)),  # by default it is that of the copy, which is removed
            OWNER: identity(os.getpid()),  # the experiments' stages are forks of one server, see stages/start
        }
        client.begin({**os.environ, **self._environment, SWEEP: sweep})
        self._owner, self._attempts = owner_of(sweep), 0
        self.runs = SweepRuns(sweep, baseline, self._owner)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._training: set[str] = set()  # those that have been seen to be past prepare
        # What each of `jobs` slots adds to the environment of its experiment.
        self._free = [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if len(gpus) > 1 else {} for job in range(jobs)]
        self._used: dict[str, dict[str, str]] = {}
        self._environment["MLFLOW_TRACKING_URI"] = self.runs.uri  # by default it is that of the copy, too

    def start(self, description: Description) -> None:
        name, folder = description.name, self._copies / description.name
        shutil.copytree(self._template.made(description), folder, symlinks=True)
        slot = self._used[name] = self._free.pop()
        self._attempts += 1
        attempt = {SWEEP_ATTEMPT: f"{self._owner}/{os.getpid()}.{self._attempts}"}
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*DVC, "exp", "run", "--name", name, *(f"--set-param={text}" for text in description.overrides)],
                cwd=folder / prefix(),
                env={**os.environ, **self._environment, **description.environment, **slot, **attempt},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its experiments itself
            )

    def poll(self, name: str) -> Phase:
        if self._processes[name].poll() is not None:
            return Phase.ENDED
        if name not in self._training and data_are_prepared(self._output(name)):
            self._training.add(name)
        return Phase.TRAINING if name in self._training else Phase.PREPARING

    def report(self, name: str) -> list[tuple[int, float]]:
        return self.runs.epochs(name)

    def stop(self, name: str) -> None:
        end_groups({self._processes[name].pid} | left_running(self._copies / name))  # stages are groups of their own

    def collect(self, name: str) -> Ending:
        self.stop(name)  # where DVC itself was killed, its stage goes on
        self._training.discard(name)
        code = self._processes.pop(name).wait()
        commit = self._fetch(name)
        shutil.rmtree(self._copies / name)
        self._free.append(self._used.pop(name))
        if commit:
            return Ending(State.DONE, metrics=metrics_of(commit))
        self.runs.close_running(name)
        return Ending(State.FAILED, reason_of_failure(self._output(name)) or f"dvc exited with {code}")

    def check(self, description: Description, commit: str) -> None:
        self._template.check(description, commit)

    def clear(self) -> None:
        end_groups(left_running(self._copies))
        for folder in self._copies.glob("[!.]*"):
            with suppress(InputError):
                self._fetch(folder.name)  # if it had just ended
        shutil.rmtree(self._copies, ignore_errors=True)
        self.runs.close_running()

    def _fetch(self, name: str) -> str:
        """Bring the experiment from its copy, and return its commit, "" if it has none. InputError if it is another."""
        ref = f"refs/exps/{self._baseline[:2]}/{self._baseline[2:]}/{name}"
        commit = git("for-each-ref", "--format=%(objectname)", ref, folder=self._copies / name).strip()
        if commit:
            try:
                git("fetch", "-q", "--no-tags", str((self._copies / name).resolve()), f"{ref}:{ref}")
            except GitError as error:
                if name in commits_of(self._baseline):
                    raise taken(name, "results") from error
                raise
            self._log(name).unlink(missing_ok=True)
        return commit

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _output(self, name: str) -> str:
        return self._log(name).read_text(encoding="utf-8", errors="replace")


def data_are_prepared(output: str) -> bool:
    """Return whether DVC, by what it has printed, runs train or took it from its cache: what it does after prepare."""
    return re.search(r"^(Running stage|Stage) 'train'", output, re.MULTILINE) is not None


def reason_of_failure(output: str) -> str:
    """Return the line that says why an experiment failed, the stage's or else DVC's; "" where there is none."""
    lines = output.splitlines()
    return next((line for start in ("error: ", "ERROR") for line in lines if line.startswith(start)), "")


def end_abandoned() -> None:
    """End what runs of other sweeps that were killed and will not be run again, since the code is another now."""
    for copies in COPIES.glob("*"):
        lock = FOLDER / copies.name / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(lock, timeout=0):
            end_groups(left_running(copies))
            shutil.rmtree(copies, ignore_errors=True)
            SweepRuns(copies.name, "", owner_of(copies.name)).close_running()


def end_groups(groups: Collection[int]) -> None:
    """End process groups: with time for a stage to close its run, then for good."""
    # Not SIGINT, which is ignored by all that a shell has started in the background.
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(group in groups for _, group in _living()) and time.monotonic() < deadline:
            time.sleep(0.1)


def left_running(folder: Path) -> set[int]:
    """Return the process groups of experiments that run under `folder`, be it of a sweep that was killed."""
    groups = set()
    for process, group in _living():
        with suppress(psutil.Error):  # it has ended, or is another user's
            # The user's own shell may be there, too.
            if Path(process.cwd()).is_relative_to(folder.resolve()) and SWEEP in process.environ():
                groups.add(group)
    return groups - {os.getpgrp()}


def _living() -> Iterator[tuple[psutil.Process, int]]:
    """Yield each process that has not ended, and its group."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, os.getpgid(process.pid)


def gpus_in_reach() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES has for the GPUs in reach."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]

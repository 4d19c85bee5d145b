"""What a sweep runs on a node of a Ray cluster, which gets this code from Ray, and all else from the remotes.

A node has git, and this project's packages in the Python that Ray runs in. What it writes is in REPRONET_SCRATCH, by
default a folder of the user's in the temporary one: DVC's cache, and a clone for each experiment while it runs.
"""

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from stages.tracking.git import git, git_bytes

GRACE_SECONDS = 60.0  # what a trial has to end its training in order
OF_RAY = ("RAY_", "OMP_NUM_THREADS", "PYTHONPATH")
PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


@dataclass(frozen=True)
class Trial:
    """An experiment, and where a node takes it from and brings it to."""

    name: str
    repository: str  # git's URL
    baseline: str  # the commit that it starts from
    source: str  # git's ref there that has the baseline
    patch: bytes
    project: str  # the folder in the repository that holds dvc.yaml
    overrides: tuple[str, ...]
    environment: Mapping[str, str]
    settings: Mapping[str, str]  # of git, in the clone
    dvc: str  # .dvc/config.local, but for the cache
    has_shared_cache: bool  # which .dvc/config names
    owner: str  # of the sweep

    @property
    def ref(self) -> str:
        """Where git has what comes of it."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


class Reports:
    """An actor: the epochs so far of what runs, and their validation accuracy, by the experiments' names."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[tuple[int, float]]] = {}

    def put(self, name: str, epochs: list[tuple[int, float]]) -> None:
        self._epochs[name] = epochs

    def of(self, name: str) -> list[tuple[int, float]]:
        return self._epochs.get(name, [])


def attempt(trial: Trial, reports: Any) -> dict[str, str]:
    """Run an experiment and bring its data and its commit to the remotes; return {"commit"} or {"reason", "output"}.

    If an earlier attempt, whose node died, has brought it there, that is it.
    """
    if commit := commit_at(trial):
        return {"commit": commit}
    scratch = Path(os.environ.get("REPRONET_SCRATCH") or Path(tempfile.gettempdir()) / f"repronet-{os.getuid()}")
    folder = scratch / trial.owner / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock") as lock:
        project = clone(trial, folder / "clone", scratch)
        log = folder / "log"
        ended = run(trial, project, [str(log), str(scratch), trial.name, *trial.overrides], lock, reports)
        shutil.rmtree(folder / "clone")
        if "commit" in ended:
            shutil.rmtree(folder)  # with its checkpoints, which one that failed goes on from
            return ended
        output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return {"reason": ended.get("reason", "the trial was killed"), "output": output[-1_000_000:]}


def commit_at(trial: Trial) -> str:
    """Return the commit that the remote has of an experiment, "" if it has none."""
    return git("ls-remote", trial.repository, trial.ref).split("\t")[0].strip()


@contextmanager
def locked(file: Path) -> Iterator[int]:
    """Hold a lock which a process that inherits it holds, too: what an earlier attempt left may not have ended yet."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def clone(trial: Trial, folder: Path, scratch: Path) -> Path:
    """Make `folder` a clone with the baseline and its patch; return where the project is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    git("init", "-q", folder=folder)
    git("remote", "add", "origin", trial.repository, folder=folder)
    git("fetch", "-q", "--no-tags", "origin", trial.source, folder=folder)
    git("checkout", "-q", "--detach", trial.baseline, folder=folder)
    if trial.patch:
        git_bytes("apply", folder=folder, stdin=trial.patch)
    for key, value in trial.settings.items():
        git("config", key, value, folder=folder)
    project = folder / trial.project
    cache = "" if trial.has_shared_cache else f"[cache]\n    dir = {scratch / 'cache'}\n"
    (project / ".dvc/config.local").write_text(trial.dvc + cache, encoding="utf-8")
    return project


def run(trial: Trial, project: Path, arguments: list[str], lock: int, reports: Any) -> dict[str, str]:
    """Let trial.py of the clone run the experiment, pass its reports on, and return the last line that it prints.

    Whatever ends this process ends that one, and all that it has started.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # What Ray has set is not for the trial: where this code is, and OMP_NUM_THREADS, which train.threads says.
    own = {name: value for name, value in os.environ.items() if not name.startswith(OF_RAY)}
    attempt = {"REPRONET_SWEEP_ATTEMPT": f"{trial.owner}/{uuid4().hex}", "PATH": path}
    state = {"REPRONET_HOME": str(project.parents[len(Path(trial.project).parts)] / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.sweep.trial", *arguments],
        cwd=project,
        env=own | dict(trial.environment) | attempt | state,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=[lock],
        preexec_fn=end_with_parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    said, last = b"", dict[str, Any]()
    try:
        while True:
            # Ray stops a task by an exception at the next line of Python, and not while one waits for long.
            if not select.select([process.stdout], [], [], 0.5)[0]:
                continue
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, said = (said + read).split(b"\n")
            for line in lines:
                last = json.loads(line)
                if "epochs" in last:
                    reports.put.remote(trial.name, last["epochs"])
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return last


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent has ended, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)

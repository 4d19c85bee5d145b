"""What a sweep runs on a node of a Ray cluster, which gets this code from Ray, and all else from the remotes.

A node has git, and this project's packages in the Python that Ray runs in. What it writes is in REPRONET_SCRATCH, by
default a folder of the user's in the temporary one: DVC's cache, and for each experiment a clone while it runs, and its
checkpoints until it has succeeded.
"""

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from stages.tracking.git import git, git_bytes

LOG = "log"  # what DVC and the stages print
RETRIES = 3  # of an experiment whose node died
GRACE_SECONDS = 60.0  # what a trial has to end its training in order
OF_RAY = ("RAY_", "OMP_NUM_THREADS", "PYTHONPATH")
PARENT_DEATH_SIGNAL = 1  # of Linux's prctl
LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None  # by now: a process that was forked may find it locked


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
    """An actor: what has begun, with the epochs so far and their validation accuracy, by the experiments' names."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[tuple[int, float]]] = {}
        self._attempts: dict[str, int] = {}

    def forget(self, name: str) -> None:
        self._epochs.pop(name, None)
        self._attempts.pop(name, None)

    def begin(self, name: str) -> int:
        """Return how many attempts there have been, with this one."""
        self._epochs[name] = []
        self._attempts[name] = self._attempts.get(name, 0) + 1
        return self._attempts[name]

    def put(self, name: str, epochs: list[tuple[int, float]]) -> None:
        self._epochs[name] = epochs

    def of(self, name: str) -> list[tuple[int, float]] | None:
        return self._epochs.get(name)


def attempt(trial: Trial, reports: Any) -> dict[str, str]:
    """Run an experiment and bring its data and its commit to the remotes; return {"commit"} or {"reason", "output"}.

    If an earlier attempt, whose node died, has brought it there, that is it. {"left"} says which rows MLflow lacks.
    """
    if begun(trial, reports) > RETRIES + 1:  # Ray counts no attempt that it has ended for its node's memory
        return {"reason": f"{RETRIES + 1} attempts have died; perhaps no node has the memory"}
    scratch = scratch_folder()
    folder = scratch / trial.owner / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock") as lock:
        remove_abandoned(folder.parent)
        try:
            if commit := commit_at(trial):
                ended = {"commit": commit}
            else:
                project = clone(trial, folder / "clone", scratch)
                ended = run(trial, project, folder, scratch, lock, reports)
        finally:
            shutil.rmtree(folder / "clone", ignore_errors=True)
        if "commit" in ended and "left" not in ended:
            shutil.rmtree(folder, ignore_errors=True)  # with its checkpoints, which one that failed goes on from
        return ended


def begun(trial: Trial, reports: Any) -> int:
    """Say that it begins; return how many attempts have begun, 0 if they cannot be counted now."""
    import ray

    with suppress(ray.exceptions.RayError):
        count: int = ray.get(reports.begin.remote(trial.name), timeout=30)
        return count
    return 0


def scratch_folder() -> Path:
    """Return the folder for what is written here. Raises PermissionError if the default one is another user's."""
    if given := os.environ.get("REPRONET_SCRATCH"):
        return Path(given).resolve()
    path = Path(tempfile.gettempdir()).resolve() / f"repronet-scratch-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not this user's alone; REPRONET_SCRATCH names another folder")
    return path


def remove_abandoned(folder: Path) -> None:
    """Remove the clones of attempts that were killed."""
    for lock in folder.glob("*/lock"):
        with suppress(OSError), locked(lock, wait=False):  # another's own, or one that works
            shutil.rmtree(lock.with_name("clone"), ignore_errors=True)


def commit_at(trial: Trial) -> str:
    """Return the commit that the remote has of an experiment, "" if it has none."""
    return git("ls-remote", trial.repository, trial.ref).split("\t")[0].strip()


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[int]:
    """Hold a lock which a process that inherits it holds, too: what an earlier attempt left may not have ended yet.

    Raises BlockingIOError if others hold it and this is not to `wait`.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def clone(trial: Trial, folder: Path, scratch: Path) -> Path:
    """Make `folder` a clone with the baseline and its patch; return where the project is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # with what an attempt that was waited for has removed
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


def run(trial: Trial, project: Path, folder: Path, scratch: Path, lock: int, reports: Any) -> dict[str, str]:
    """Let trial.py of the clone run the experiment, pass its reports on, and return what it says in the end.

    Whatever ends this process ends that one, and all that it has started.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # What Ray has set is not for the trial: where this code is, and OMP_NUM_THREADS, which train.threads says.
    own = {name: value for name, value in os.environ.items() if not name.startswith(OF_RAY)}
    state = {
        "PATH": path,
        "REPRONET_SWEEP_ATTEMPT": f"{trial.owner}/{uuid4().hex}",
        "REPRONET_HOME": str(folder / "home"),
        "DVC_SITE_CACHE_DIR": str(folder / "site"),  # else what DVC notes of each clone stays on the node
    }
    (folder / LOG).unlink(missing_ok=True)
    for made in (folder / "home", scratch / "shards"):
        made.mkdir(exist_ok=True)
    with suppress(FileExistsError):  # one cache of streamed shards for all of a node
        (folder / "home/shards").symlink_to(scratch / "shards")
    said, last = b"", dict[str, Any]()
    process: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.sweep.trial", str(folder), str(scratch), trial.name, *trial.overrides],
                cwd=project,
                env=own | dict(trial.environment) | state,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=[lock],
                preexec_fn=end_with_parent,
                start_new_session=True,
            )
        assert process.stdout is not None
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
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if "commit" in last:
        return last
    output, errors_said = (text_of(folder / name) for name in (LOG, "errors"))
    if process.returncode or "reason" not in last:
        from tools.sweep.local import end_groups, left_running  # with torch, which others need not wait for

        end_groups(left_running(project))  # where the trial itself was killed
    lines_said = errors_said.strip().splitlines() or [""]
    reason = last.get("reason") or f"its process ended with {process.returncode}: {lines_said[-1]}"
    return {"reason": reason, "output": output + errors_said}


def text_of(file: Path) -> str:
    """Return the end of a file, "" if there is none."""
    return file.read_text(encoding="utf-8", errors="replace")[-1_000_000:] if file.exists() else ""


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent has ended, in whatever way."""
    if LIBRARY:
        LIBRARY.prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)

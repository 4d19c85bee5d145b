"""Where a run comes from: commit, changes, experiment, machine. For MLflow, never for an output."""

import getpass
import hashlib
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stages.base.errors import listed
from stages.base.experiment import EXPERIMENT_NAME, SWEEP
from stages.base.instructions import cpu_model
from stages.base.text import warn
from stages.tracking.git import GitError, git, git_bytes, untracked

if TYPE_CHECKING:
    import torch

PROCESS_TAG = "process"
SWEEP_ATTEMPT, SWEEP_ATTEMPT_TAG = "REPRONET_SWEEP_ATTEMPT", "sweep.attempt"  # whose it is, and which: OWNER/NUMBER
MACHINE_IDS = ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")  # many a container has the second alone
# What results follow from. The rest of a dirty tree is results themselves, which every run changes.
SOURCES = (".", ":(exclude)dvc.lock", ":(exclude)metrics")
LARGEST_NEW = 1_000_000  # bytes of a new file that a run's patch takes


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from."""

    tags: dict[str, str]
    patch: bytes = b""  # what made the code and params differ from the commit
    time: int | None = None  # ms since 1970 when its results were recorded, None: now


def patch(*commits: str) -> bytes:
    """Return the changes to tracked files between two commits, or since the last, as `git apply` takes them.

    Raises GitError.
    """
    return git_bytes("diff", "--binary", *(commits or ["HEAD"]), "--", *SOURCES)


def changes() -> tuple[bytes, list[str]]:
    """Return the changes since the last commit, new files included, and the new files that are too large for that.

    Data, which are large by nature, are not among them: DVC keeps those, see data_in_git.py. Raises GitError.
    """
    whole, left_out, beginning = patch(), list[str](), git("rev-parse", "--show-prefix").removesuffix("\n")
    prefixes = [f"--src-prefix=a/{beginning}", f"--dst-prefix=b/{beginning}"]
    of_dvc = (":(glob)data/**/*.dvc", ":(glob)data/**/.gitignore")
    for name in [*untracked(*SOURCES, ":(exclude)data"), *untracked(*of_dvc)]:
        try:
            size = os.lstat(name).st_size
        except FileNotFoundError:  # another process has had it for a moment
            continue
        if size > LARGEST_NEW:
            left_out.append(name)
        else:
            whole += git_bytes("diff", "--binary", *prefixes, "--no-index", "--", os.devnull, name, status=1)
    return whole, left_out


def of_process(environment: Mapping[str, str]) -> Provenance:
    """Return where what this process makes comes from. Without git it warns, and lacks commit and changes."""
    tags = {
        "mlflow.user": user(),
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "LOCAL",
        "dvc.exp_name": environment.get(EXPERIMENT_NAME, ""),
        "dvc.baseline_rev": environment.get("DVC_EXP_BASELINE_REV", ""),
        "sweep": environment.get(SWEEP, ""),
        SWEEP_ATTEMPT_TAG: environment.get(SWEEP_ATTEMPT, ""),
        "directory": str(Path.cwd()),
    }
    whole = b""
    try:
        commit, (whole, left_out) = git("rev-parse", "HEAD").strip(), changes()
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(git("status", "--porcelain", "--", *SOURCES))).lower()
        tags["git.untracked"] = listed(left_out)
        if left_out:
            warn(
                f"warning: this run cannot be rebuilt without {listed(left_out)}: git does not have it, and a run takes"
                f" new files of up to {LARGEST_NEW / 1e6:.0f} MB: git add, or .gitignore where it plays no part"
            )
    except GitError as error:
        warn(f"warning: the run in MLflow will not say which code made it: {error}")
    return Provenance({name: value for name, value in tags.items() if value}, whole)


def of_commit(commit: str, experiment: str = "", baseline: str = "") -> Provenance:
    """Return where results that a commit holds come from; for an experiment's commit, what its own run said.

    Raises GitError.
    """
    author, seconds = git("log", "-1", "--format=%an%n%ct", commit).splitlines()
    changed = patch(baseline, commit) if baseline else b""
    tags = {
        "mlflow.user": author,
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": baseline or commit,
        "git.dirty": str(bool(changed)).lower(),
        "dvc.exp_name": experiment,
        "dvc.baseline_rev": baseline,
    }
    return Provenance({name: value for name, value in tags.items() if value}, changed, int(seconds) * 1000)


def of_computation(device: "torch.device") -> dict[str, str]:
    """Return tags of what changes float results besides the params: versions, processor, device."""
    import torch

    return {
        "env.python": platform.python_version(),
        "env.torch": torch.__version__,
        "env.numpy": version("numpy"),
        "env.host": platform.node(),
        "env.cpu": cpu_model(),
        "env.cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "env.device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "env.threads": str(torch.get_num_threads()),
    }


def of_writer() -> dict[str, str]:
    """Return the tag by which `has_ended` tells whether the process that writes a run, this one, is still there."""
    return {PROCESS_TAG: f"{_machine()} {os.getpid()} {psutil.Process().create_time():.0f}"}


def has_ended(process: str) -> bool:
    """Return whether a process, as its tag names it, is known to be gone: it was on this machine, and is not there."""
    return _was_here(process) and not _is_there(process)


def is_alive(process: str) -> bool:
    """Return whether a process, as its tag names it, is known to be there, on this machine."""
    return _was_here(process) and _is_there(process)


def _was_here(process: str) -> bool:
    return process.rsplit(" ", 2)[0] == _machine()  # another's may begin with the same words


def _is_there(process: str) -> bool:
    number, start = process.split()[-2:]
    try:
        found = psutil.Process(int(number))
        # Else another process by the same number; a clock that is set moves the start of all of them a little.
        is_same = abs(found.create_time() - float(start)) <= 60
        return is_same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _machine() -> str:
    """Return what the numbers of processes are valid in: this machine, or one container of it.

    Machines may have one name, and their namespaces one number.
    """
    own, namespace = "", ""
    with suppress(OSError):  # not Linux
        namespace = str(Path("/proc/self/ns/pid").readlink())
    for path in MACHINE_IDS:
        with suppress(OSError):
            own = own or Path(path).read_text(encoding="ascii").strip()
    # Of the first of these systemd asks that others do not get to see it.
    digest = hashlib.sha256(own.encode()).hexdigest()[:12] if own else ""
    return " ".join(filter(None, [platform.node(), digest, namespace]))


def user() -> str:
    """Return who runs this process, "" if they have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""

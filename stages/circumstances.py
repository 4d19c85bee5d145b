"""Under what circumstances a run was made: commit, changes, experiment, machine. For MLflow, never for an output."""

import getpass
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

# What results follow from. The rest of a dirty tree is results themselves, which every run changes.
SOURCES = (".", ":(exclude)dvc.lock", ":(exclude)metrics")


def _git(*arguments: str) -> bytes:
    """Return what git prints, nothing where it fails or there is no git."""
    try:
        # DVC may hold the index, so git must not wait for a lock on it.
        return subprocess.run(["git", "--no-optional-locks", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def patch() -> bytes:
    """Return the changes to tracked files since the commit, as `git apply` takes them whatever the user's settings."""
    plain = ["--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/"]
    return _git("diff", *plain, "HEAD", "--", *SOURCES)


def of_process(environment: Mapping[str, str]) -> dict[str, str]:
    """Return tags that tie a run to git and to DVC's experiment."""
    commit = _git("rev-parse", "HEAD").decode().strip()
    changed = _git("status", "--porcelain", "--", *SOURCES).decode(errors="replace")
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "git.dirty": str(bool(changed)).lower(),
        "git.untracked": ", ".join(line[3:] for line in changed.splitlines() if line.startswith("??")),
        "dvc.exp_name": environment.get("DVC_EXP_NAME", ""),
        "dvc.baseline_rev": environment.get("DVC_EXP_BASELINE_REV", ""),
        "sweep": environment.get("REPRONET_SWEEP", ""),
        "directory": str(Path.cwd()),
    }
    return {name: value for name, value in tags.items() if value}


def of_computation(device: torch.device) -> dict[str, str]:
    """Return tags of what changes float results besides the params: versions, processor, device."""
    return {
        "env.python": platform.python_version(),
        "env.torch": torch.__version__,
        "env.numpy": version("numpy"),
        "env.host": platform.node(),
        "env.cpu": _cpu_model(),
        "env.cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "env.device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "env.threads": str(torch.get_num_threads()),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()

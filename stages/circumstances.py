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


def git(*arguments: str) -> str:
    """Return what git prints, "" where it fails or there is no git."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.rstrip("\n")
    except (OSError, subprocess.CalledProcessError):
        return ""


def patch() -> str:
    """Return the changes to tracked files since the commit, in the form that `git apply` takes; "" for none."""
    return git("diff", "--binary", "HEAD", "--", *SOURCES)


def of_process(environment: Mapping[str, str]) -> dict[str, str]:
    """Return tags that tie a run to git and to DVC's experiment."""
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", *SOURCES)
    tags = {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "git.dirty": str(bool(changed)).lower(),
        "git.untracked": ", ".join(line[3:] for line in changed.splitlines() if line.startswith("??")),
        "dvc.exp_name": environment.get("DVC_EXP_NAME", ""),
        "dvc.baseline_rev": environment.get("DVC_EXP_BASELINE_REV", ""),
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


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()

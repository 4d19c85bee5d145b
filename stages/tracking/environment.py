"""What a training ran in, as far as results can depend on it: what `tools.rebuild` has to find again."""

import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from stages.base.dvc import command_of_dvc
from stages.base.instructions import cpu_model
from stages.base.processes import cores
from stages.base.text import shown_url

ARTIFACT = "environment.json"
VERSION = 1  # of what it holds
# What torch and the libraries below it read, and Python.
VARIABLES = re.compile(r"(ATEN|CUBLAS|CUDA|CUDNN|DNNL|GOMP|KMP|MKL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTHON|TORCH)_?[A-Z_]*")


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, machine, settings and commands, as JSON."""
    return {
        "version": VERSION,
        "command": shown_url(shlex.join(sys.orig_argv)),
        "dvc": shown_url(command_of_dvc()),
        "python": platform.python_version(),
        "packages": packages(),
        "os": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": cores(), "flags": cpu_flags()},
        "gpu": gpu(device),
        "threads": torch.get_num_threads(),
        "variables": {name: shown_url(value) for name, value in os.environ.items() if VARIABLES.fullmatch(name)},
    }


def packages() -> dict[str, str]:
    """Return the version of each installed package by its name, as the folders of what pip installs have them."""
    # importlib.metadata would read a file of each, which takes 0.1 s.
    folders = [path for place in reversed(sys.path) for path in Path(place or ".").glob("*-*.dist-info")]
    return dict(sorted(folder.name.removesuffix(".dist-info").rsplit("-", 1) for folder in folders))


def cpu_flags() -> list[str]:
    """Return what the CPU says that it can do, [] where it does not."""
    try:
        [flags] = re.findall(r"^(?:flags|Features)\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    except (OSError, ValueError):  # not Linux
        return []
    return str(flags).split()


def gpu(device: torch.device) -> dict[str, str]:
    """Return name, driver and libraries of a GPU, {} for another device."""
    if device.type != "cuda":
        return {}
    try:
        driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        driver = "unknown"
    name, cudnn = torch.cuda.get_device_name(device), torch.backends.cudnn.version()
    return {"name": name, "driver": driver, "cuda": str(torch.version.cuda), "cudnn": str(cudnn)}

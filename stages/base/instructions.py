"""Which of the CPU's instructions torch may use: float sums have other last bits with other ones.

ATen, oneDNN and MKL each choose by what the CPU offers, once, when torch is imported. So what limits them is in the
environment before that: whatever imports `stages` first gets the limits of params.yaml's `train.determinism`.
"""

import json
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal

from stages.base.errors import InputError
from stages.base.yaml import read_yaml

Level = Literal["portable", "machine", "off"]
PORTABLE: Level = "portable"

# With these, every x86-64 CPU that has AVX2 gives the same bits. MKL's AVX2 is another on each maker's CPUs.
LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
OUTER = "REPRONET_OUTER_LIMITS"  # what the limits were before: a process at another level may be started by this one

_limited = False  # whether torch has been imported, or will be, with the limits


def limit(environment: MutableMapping[str, str], params: Path = Path("params.yaml")) -> None:
    """Set LIMITS if the level is portable; else take back what a process of ours, whose child this is, had set.

    On a CPU without AVX2 nothing is set. What is wrong in `params` is for others to say: the level is portable then.
    """
    global _limited
    limited = all(environment.get(name) == value for name, value in LIMITS.items())
    for name, value in json.loads(environment.pop(OUTER, "{}")).items():
        if environment.get(name) == LIMITS.get(name):  # else somebody has set another since
            _set(environment, name, value)
    portable = _level(params) == PORTABLE and has_avx2()
    if portable:
        environment[OUTER] = json.dumps({name: environment.get(name) for name in LIMITS})
        environment.update(LIMITS)
    _limited = limited if "torch" in sys.modules else portable


def check(level: Level, cpu: bool) -> bool:
    """Return whether what is computed now has the bits of every CPU. `cpu` is whether it is computed by one.

    Raises InputError if torch has been imported with other limits than those of the `level`.
    """
    portable = level == PORTABLE and cpu and has_avx2()
    if cpu and level != "off" and portable != _limited:
        raise InputError(
            f"train.determinism: {level!r}, but torch was imported for another level or before stages; what it uses of"
            " the CPU is settled then. Import stages first, in a folder whose params.yaml has this level."
        )
    return portable


def has_avx2() -> bool:
    """Return whether this is an x86-64 CPU with AVX2, as all are since 2013 (Intel) and 2015 (AMD)."""
    return platform.machine() in ("x86_64", "AMD64") and _has("avx2", unknown=True)  # nearly all have it


def lacks_bfloat16() -> bool:
    """Return whether this is an x86-64 CPU that is known to have no instructions, of AVX-512 or AMX, for bfloat16."""
    flags = ("avx512_bf16", "amx_bf16")
    return platform.machine() in ("x86_64", "AMD64") and not any(_has(flag, unknown=True) for flag in flags)


def _has(flag: str, unknown: bool) -> bool:
    """Return whether Linux names the flag among the CPU's, or on other systems `unknown`."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return f" {flag} " in file.read(8192)  # the first of many cores says it
    except OSError:
        return unknown


def cpu_model() -> str:
    """Return what the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _level(params: Path) -> Any:
    try:
        return read_yaml(params.read_bytes(), str(params))["train"]["determinism"]
    except (OSError, InputError, TypeError, KeyError):
        return PORTABLE


def _set(environment: MutableMapping[str, str], name: str, value: str | None) -> None:
    if value is None:
        environment.pop(name, None)
    else:
        environment[name] = value

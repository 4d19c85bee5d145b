"""A stage on its own, and what time and memory it takes."""

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from ruamel.yaml import YAML

from bench.clones import finish, start


class Cost(NamedTuple):
    """What a stage took."""

    seconds: float
    peak: int  # bytes of memory, without the page cache

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, peak of memory {self.peak / 1e9:.2f} GB"


def cost(clone: Path, stage: str, params: Mapping[str, Mapping[str, Any]], *paths: Path | str) -> Cost:
    """Run a stage in a clone; `params` are changes, by section. Raises RuntimeError if it fails."""
    yaml, file = YAML(), clone / "params.yaml"
    values = yaml.load(file.read_text(encoding="utf-8"))
    for section, changes in params.items():
        values[section].update(changes)
    with file.open("w", encoding="utf-8") as opened:
        yaml.dump(values, opened)
    started, peak = time.perf_counter(), 0
    process = start(clone, "python", "-m", f"stages.{stage}", *map(str, paths))
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.2)
    took = time.perf_counter() - started
    finish(process)
    return Cost(took, peak)


def anonymous(number: int) -> int:
    """Return the memory of a process and those it started, bytes, without the page cache.

    What they share after a fork counts once: Linux's Pss_Anon divides it among the processes.
    """
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(number)
        for each in [process, *process.children(recursive=True)]:
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="utf-8")
            found = re.search(r"Pss_Anon:\s+(\d+) kB", rollup)
            total += int(found[1]) * 1024 if found else 0
    return total

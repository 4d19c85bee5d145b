"""What a sweep is to do, settled before anything runs and written down."""

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.base.errors import InputError
from stages.base.files import replacing, write_json
from stages.base.processes import cores
from stages.tracking import provenance
from tools.sweep import overrides
from tools.sweep.experiments import run_git

FOLDER = Path("sweeps")  # for each sweep its plan, its lock, the search's journal and the logs of what failed
SEED, THREADS = "train.seed", "train.threads"


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do. It is written down, so that the same name cannot come to mean something else."""

    name: str
    baseline: str  # commit
    axes: list[overrides.Axis]
    search: int | None
    threads: int | None  # of each experiment, where it gets fewer than params.yaml says
    changes: bytes  # to tracked files since the commit, as a patch

    @classmethod
    def of(cls, given: Sequence[str], search: int | None, name: str | None, jobs: int) -> "Plan":
        """Return the plan, the one written down earlier for the same command. Raises InputError for wrong overrides."""
        try:
            baseline = run_git("rev-parse", "HEAD").strip()
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError("an experiment needs a git repository with a commit") from error
        changes = provenance.patch(baseline)
        axes = overrides.parse(given)
        for axis in axes:
            if axis.name == SEED and axis.interval:
                raise InputError(f"-S {SEED}: seeds are listed, not searched: {SEED}=0,1,2")
            if search and axis.name.startswith("prepare.") and len(axis.values) != 1:
                raise InputError(f"-S {axis.name}: a search cannot compare accuracies on other validation images")
            if axis.interval and not search:
                raise InputError(f"-S {axis.name}: an interval can be searched, with --search N, but not listed")
        identity = {
            "baseline": baseline,
            "changes": hashlib.sha256(changes).hexdigest(),
            "overrides": list(given),
            "search": bool(search),
        }
        name = name or f"sweep-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:6]}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
            raise InputError(f"--name {name!r}: letters, digits and hyphens are accepted")
        file = FOLDER / name / "plan.json"
        with suppress(FileNotFoundError):
            written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            threads = written.pop("threads", None)
            if written != identity:
                differs = ", ".join(key for key in identity if identity[key] != written.get(key))
                raise InputError(f"--name {name} is a sweep with other {differs}; take another name")
            return cls(name, baseline, axes, search, threads, changes)

        # An example of each value, to find mistakes before anything runs.
        for i in range(max(len(axis.values) or 2 for axis in axes)):
            params = overrides.check([f"{axis.key}={_example(axis, i)}" for axis in axes])
        share = max(1, cores() // jobs)
        fewer = params.train.threads > share and THREADS not in [axis.name for axis in axes]
        threads = share if fewer else None
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            write_json(partial, {**identity, "threads": threads})
        return cls(name, baseline, axes, search, threads, changes)


def _example(axis: overrides.Axis, i: int) -> str:
    if axis.interval:
        return str(axis.interval.high if i else axis.interval.low)
    return axis.values[min(i, len(axis.values) - 1)]

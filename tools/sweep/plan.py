"""What a sweep is to do, settled before anything runs and written down."""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.base.errors import InputError
from stages.base.experiment import SWEEP
from stages.base.files import replacing, write_json
from stages.base.params import SEED, Params
from stages.base.processes import AUTO, cores, thread_count
from stages.tracking import provenance
from stages.tracking.git import GitError, git
from tools.sweep import overrides
from tools.sweep.experiments import Description, Experiment
from tools.sweep.overrides import Axis

FOLDER = Path("sweeps")  # for each sweep its plan, its lock, the search's journal and the logs of what failed
THREADS = "train.threads"


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do. It is written down, so that the same name cannot come to mean something else."""

    name: str
    baseline: str  # commit
    patch: bytes  # to tracked files since the commit
    axes: list[Axis]
    search: int | None  # number of configurations that are searched, None: all of them are run
    threads: int | None  # of each experiment, where it gets fewer than params.yaml says
    inputs: list[Path]  # files and folders that the user brought, and an experiment reads
    examples: list[Params]  # with each of the values that experiments have, not in all combinations

    @classmethod
    def of(cls, given: Sequence[str], search: int | None, name: str | None, jobs: int | None) -> "Plan":
        """Return the plan, the one written down earlier for the same command. Raises InputError for wrong overrides.

        That many `jobs` share this machine's cores out; None: they run elsewhere.
        """
        try:
            baseline = git("rev-parse", "HEAD").strip()
        except GitError as error:
            raise InputError(f"an experiment needs a git repository with a commit: {error}") from error
        patch = provenance.patch(baseline)
        axes = overrides.parse(given)
        _check_axes(axes, bool(search))
        identity = {
            "baseline": baseline,
            "changes": hashlib.sha256(patch).hexdigest(),
            "overrides": list(given),
            "search": bool(search),
        }
        name = name or f"sweep-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:6]}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
            raise InputError(f"--name {name!r}: letters, digits and hyphens are accepted")
        # An example of each value, so that mistakes are found before anything runs.
        examples = range(max(len(axis.values) or 2 for axis in axes))
        checked = [overrides.check([f"{axis.key}={_example(axis, i)}" for axis in axes]) for i in examples]
        file = FOLDER / name / "plan.json"
        if file.exists():
            written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            threads = written.pop("threads", None)
            if differences := [key for key in identity if identity[key] != written.get(key)]:
                raise InputError(f"--name {name} is a sweep with other {', '.join(differences)}; take another name")
        else:
            is_given, processes = THREADS in [axis.name for axis in axes], max(each.train.processes for each in checked)
            share = max(1, min(cores(), thread_count(AUTO)) // jobs // processes) if jobs else None
            shares_out = share and thread_count(checked[-1].train.threads) > share and not is_given
            threads = share if shares_out else None
            with replacing(file) as partial:
                write_json(partial, {**identity, "threads": threads})
        return cls(
            name,
            baseline,
            patch,
            axes,
            search,
            threads,
            sorted({path for params in checked for path in params.inputs}),
            checked,
        )

    @property
    def searched(self) -> list[Axis]:
        """The axes that make configurations."""
        return [axis for axis in self.axes if axis.name != SEED]

    @property
    def seeds(self) -> list[dict[str, str]]:
        """What to add to a configuration for each of its experiments: {key: seed}, or nothing where none is given."""
        return overrides.grid([axis for axis in self.axes if axis.name == SEED])

    def experiment(
        self, number: int, values: dict[str, str], seed: dict[str, str], taken: Collection[str]
    ) -> Experiment:
        """Return an experiment of the configuration `number`, whose name is not one of those `taken`."""
        varied = {axis.name: values[axis.key] for axis in self.searched if len(axis.values) != 1}
        words = [f"{number:02}"] if self.search else list(varied.values())
        if len(self.seeds) > 1:
            words += [f"s{value}" for value in seed.values()]
        words = [re.sub(r"[^A-Za-z0-9.]+|\.\.+", "_", word).strip("_.") or "none" for word in words]
        name = "-".join([self.name, *words])
        if len(name) > 80 or name in taken:
            name = f"{self.name}-{len(taken):03}"
        assigned = values | seed | ({THREADS: str(self.threads)} if self.threads else {})
        given = [f"{key}={value}" for key, value in assigned.items()]
        description = Description(name, self.baseline, self.patch, given, {SWEEP: self.name})
        return Experiment(description, number, varied)


def _check_axes(axes: Sequence[Axis], search: bool) -> None:
    for axis in axes:
        if axis.name == SEED and axis.interval:
            raise InputError(f"-S {SEED}: seeds are listed, not searched: {SEED}=0,1,2")
        if search and axis.name.startswith("prepare.") and len(axis.values) != 1:
            raise InputError(f"-S {axis.name}: a search cannot compare accuracies on other validation images")
        if axis.interval and not search:
            raise InputError(f"-S {axis.name}: an interval can be searched, with --search N, but not listed")


def _example(axis: Axis, i: int) -> str:
    if axis.interval:
        return str(axis.interval.high if i else axis.interval.low)
    return axis.values[min(i, len(axis.values) - 1)]

"""What differs between runs, and whether the difference in test accuracy is real."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from stages.base.params import SEED
from tools.runs import EvaluatedRun
from tools.statistics import RESAMPLES, bootstrap_interval, mcnemar, mean_interval

METRICS = ["test/accuracy", "test/loss", "test/macro_f1", "test/ece", "test/never_predicted", "best/valid_accuracy"]


@dataclass(frozen=True)
class Comparison:
    """What there is to say of runs, in texts."""

    runs: Sequence[EvaluatedRun]
    tables: dict[str, list[list[str]]]  # rows by the title of their table: a name, and a cell for each run
    remarks: list[str]  # on how to read them
    verdicts: list[str]

    @property
    def same(self) -> str:
        """What does not differ."""
        same = [title.split()[0] for title, table in self.tables.items() if not table]
        return f"The same in all: {', '.join(same)}." if same else ""


def compare(runs: Sequence[EvaluatedRun]) -> Comparison:
    """Compare the runs, and the first with each of the others image by image."""
    tables = {
        "metrics": [[name, *(_metric(run, name) for run in runs)] for name in METRICS],
        "parameters that differ": (parameters := differences([run.params for run in runs])),
        "settings used that differ": used(runs, parameters),
        "data that differ": differences([_data(run) for run in runs]),
        "code that differs": differences([_code(run) for run in runs]),
        "environment that differs": differences([_environment(run) for run in runs]),
    }
    verdicts = [verdict(runs[0], other) for other in runs[1:]]
    return Comparison(runs, tables, remarks(runs), [*verdicts, *over_seeds(runs)])


def remarks(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return what has to be known of the figures of these runs."""
    found = [run.remark for run in runs if run.remark]
    if len({run.id for run in runs}) < len(runs):
        found.append("a run is named more than once")
    losses = {run.loss for run in runs}
    if len(losses) > 1:
        found.append(f"test/loss is of different loss functions ({'; '.join(sorted(losses))}): do not compare it")
    if others := {run.loss for run in runs if not run.gives_probabilities}:
        found.append(f"test/ece is of probabilities, and scores trained with {'; '.join(sorted(others))} give none")
    return found


def used(runs: Sequence[EvaluatedRun], parameters: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return which settings differ of those that runs were trained with, but what their `parameters` say already.

    Of runs of earlier versions they are not known.
    """
    said = {tuple(cells) for _, *cells in parameters}
    known = all(run.used for run in runs)
    return [row for row in differences([run.used for run in runs]) if tuple(row[1:]) not in said] if known else []


def differences(columns: Sequence[dict[str, str]]) -> list[list[str]]:
    """Return a row for each key whose values are not the same in all columns, - where a column lacks the key."""
    rows = [[key, *(column.get(key, "-") for column in columns)] for key in sorted(set().union(*columns))]
    return [row for row in rows if len(set(row[1:])) > 1]


@dataclass(frozen=True)
class Pair:
    """Two runs on the same test images: how many images only one of them gets right, and what follows."""

    n_images: int
    only_first: int
    only_second: int

    @classmethod
    def of(cls, first: EvaluatedRun, second: EvaluatedRun) -> "Pair | None":
        """Return the comparison image by image, None where the runs were tested on different images."""
        if first.data["testing"] != second.data["testing"]:
            return None
        right_first, right_second = first.right(), second.right()
        return cls(len(right_first), int((right_first & ~right_second).sum()), int((right_second & ~right_first).sum()))

    @property
    def difference(self) -> float:
        """Second minus first test accuracy."""
        return (self.only_second - self.only_first) / self.n_images

    @property
    def p(self) -> float:
        """p-value of McNemar's exact test."""
        return mcnemar(self.only_first, self.only_second)

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than chance among test images would make."""
        return self.p < 0.05


def verdict(first: EvaluatedRun, second: EvaluatedRun) -> str:
    """Return in words whether the two differ in test accuracy."""
    names, pair = f"{second.name} against {first.name}", Pair.of(first, second)
    if pair is None:
        return (
            f"{names}: cannot be compared, they were tested on different images:"
            f" {_data(second)['testing']} and {_data(first)['testing']}."
        )
    low, high = bootstrap_interval(pair.only_first, pair.only_second, pair.n_images)
    better = second.name if pair.difference > 0 else first.name
    p = f"= {pair.p:.4f}" if pair.p >= 0.00005 else "< 0.0001"
    conclusion = f"The difference is real: {better} is better" if pair.is_real else "No difference can be told"
    return (
        f"{names}: {second.right().mean():.4f} and {first.right().mean():.4f} on the same {pair.n_images:,} test"
        f" images; {pair.only_second} right in the former alone, {pair.only_first} in the latter alone.\n"
        f"  Difference {pair.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        f" (paired bootstrap, {RESAMPLES:,} resamples). McNemar's exact test: p {p}.\n"
        f"  {conclusion} (p {'<' if pair.is_real else '>='} 0.05)."
    )


def over_seeds(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return for each group of runs that differ in their seed alone the mean of test figures, with 95 % intervals."""
    groups: dict[frozenset[tuple[str, str]], dict[str, EvaluatedRun]] = {}
    for run in runs:
        same = run.params | run.used | _code(run) | run.data
        seed = same.pop(SEED)
        groups.setdefault(frozenset(same.items()), {})[seed] = run
    texts = []
    for group in groups.values():
        if len(group) > 1:
            means = {
                called: mean_interval([run.metrics[f"test/{figure}"] for run in group.values()])
                for called, figure in {"": "accuracy", "macro F1 ": "macro_f1"}.items()
                if all(f"test/{figure}" in run.metrics for run in group.values())
            }
            names = ", ".join(run.name for run in group.values())
            found = ", ".join(f"{called}{mean:.4f} ± {half:.4f}" for called, (mean, half) in means.items())
            texts.append(f"{names}: {found} over {len(group)} seeds, 95 % intervals of the mean.")
    return texts


def _metric(run: EvaluatedRun, name: str) -> str:
    value = run.metrics.get(name, math.nan)
    if math.isnan(value) or (name == "test/ece" and not run.gives_probabilities):
        return "-"
    return f"{value:.6g}"


def _data(run: EvaluatedRun) -> dict[str, str]:
    """Return the run's data with as much of the digests as tells them apart."""
    return {context: data[: data.rindex(" ") + 9] for context, data in run.data.items()}


def _code(run: EvaluatedRun) -> dict[str, str]:
    if not (commit := run.tags.get("mlflow.source.git.commit", "")):
        return dict.fromkeys(("commit", "changed files", "untracked files"), "unknown")
    # What an experiment changes in params.yaml stands under the parameters.
    changes = {part.splitlines()[0].split(" b/")[-1]: part for part in re.split(r"(?m)^diff --git ", run.patch)[1:]}
    digests = {
        name: hashlib.sha256(part.encode()).hexdigest()[:8]
        for name, part in changes.items()
        if PurePosixPath(name).name != "params.yaml"
    }
    return {
        "commit": commit[:9],
        "changed files": ", ".join(f"{name} ({digest})" for name, digest in digests.items()) or "none",
        "untracked files": run.tags.get("git.untracked", "none"),
    }


def _environment(run: EvaluatedRun) -> dict[str, str]:
    return {name.removeprefix("env."): value for name, value in run.tags.items() if name.startswith("env.")}

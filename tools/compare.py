"""Compare runs: what differs between them, and whether the difference in test accuracy is real.

    python -m tools.compare seed-0 seed-1
    python -m tools.compare best 93c824800cbf4f12b0995cdb5167a671 --html compare.html

A run is named by its id, by its name (which is the DVC experiment's), or as `best`, the best by validation. The first
is compared with each of the others, image by image. With --log the page becomes an artifact of each of the runs.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.base import cli
from stages.base.files import replacing
from stages.base.params import SEED
from stages.base.text import say
from tools.runs import EvaluatedRun, Runs
from tools.statistics import RESAMPLES, bootstrap_interval, mcnemar, mean_interval

METRICS = ["test/accuracy", "test/loss", "test/macro_f1", "test/ece", "test/never_predicted", "best/valid_accuracy"]


# Rows by the title of their table; the first cell of a row names it.
Tables = dict[str, list[list[str]]]


def main() -> None:
    parser = cli.parser("tools.compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two or more: run id, run name, or best")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--log", action="store_true", help="log the page to each of the runs, under comparisons/")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        parser.error("name two runs or more")
    store = Runs()
    runs = [store.find(name) for name in arguments.runs]
    tables, verdicts = compare(runs)
    say(as_text(tables, verdicts))
    page = as_html(tables, verdicts)
    if arguments.html:
        with replacing(arguments.html) as partial:
            partial.write_text(page, encoding="utf-8")
    if arguments.log:
        for run in runs:
            others = "-".join(other.name for other in runs if other is not run)
            store.client.log_text(run.id, page, f"comparisons/{others}.html")


def compare(runs: Sequence[EvaluatedRun]) -> tuple[Tables, list[str]]:
    """Return tables of what differs between the runs, and for each pair of the first with another a verdict."""
    tables = {
        "": [["run", *(run.name for run in runs)], ["id", *(run.id[:8] for run in runs)]],
        "metrics": [[name, *(_number(run.metrics.get(name)) for run in runs)] for name in METRICS],
        "parameters that differ": differences([run.params for run in runs]),
        "data that differ": differences([run.data for run in runs]),
        "code that differs": differences([_code(run) for run in runs]),
        "environment that differs": differences([_environment(run) for run in runs]),
    }
    if seeds := over_seeds(runs):
        tables["test accuracy over seeds"] = seeds
    return tables, [verdict(runs[0], other) for other in runs[1:]]


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
            f" {second.data['testing']} and {first.data['testing']}."
        )
    low, high = bootstrap_interval(pair.only_first, pair.only_second, pair.n_images)
    better = second.name if pair.difference > 0 else first.name
    conclusion = f"The difference is real: {better} is better" if pair.is_real else "No difference can be told"
    return (
        f"{names}: {second.right().mean():.4f} and {first.right().mean():.4f} on the same {pair.n_images:,} test"
        f" images; {pair.only_second} right in the former alone, {pair.only_first} in the latter alone.\n"
        f"  Difference {pair.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        f" (paired bootstrap, {RESAMPLES:,} resamples). McNemar's exact test: p = {pair.p:.4f}.\n"
        f"  {conclusion} (p {'<' if pair.is_real else '>='} 0.05)."
    )


def over_seeds(runs: Sequence[EvaluatedRun]) -> list[list[str]]:
    """Return a row for each group of runs that differ in their seed alone: mean test accuracy and 95 % interval."""
    groups: dict[frozenset[tuple[str, str]], dict[str, EvaluatedRun]] = {}
    for run in runs:
        same = run.params | _code(run) | {"test images": run.data["testing"]}
        seed = same.pop(SEED)
        groups.setdefault(frozenset(same.items()), {})[seed] = run
    rows = []
    for group in groups.values():
        if len(group) > 1:
            mean, half = mean_interval([run.metrics["test/accuracy"] for run in group.values()])
            names = ", ".join(run.name for run in group.values())
            rows.append([names, f"{mean:.4f} ± {half:.4f}", f"{len(group)} seeds, 95 % interval of the mean"])
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.6g}"


def _code(run: EvaluatedRun) -> dict[str, str]:
    if not (commit := run.tags.get("mlflow.source.git.commit", "")):
        return dict.fromkeys(("commit", "changed files"), "unknown")
    # What an experiment changes in params.yaml stands under the parameters.
    changed = [line.split(" b/")[-1] for line in run.patch.splitlines() if line.startswith("diff --git")]
    others = [name for name in changed if PurePosixPath(name).name != "params.yaml"]
    return {"commit": commit[:9], "changed files": ", ".join(others) or "none"}


def _environment(run: EvaluatedRun) -> dict[str, str]:
    return {name.removeprefix("env."): value for name, value in run.tags.items() if name.startswith("env.")}


def as_text(tables: Tables, verdicts: Sequence[str]) -> str:
    """Return the comparison for a terminal, its columns aligned across the tables."""
    rows = [row for table in tables.values() for row in table]
    width = max(len(row[0]) for row in rows) + 2
    other = max(len(cell) for row in rows for cell in row[1:]) + 2
    lines = []
    for title, table in tables.items():
        lines += ["", title] if title and table else []
        lines += [f"  {row[0]:<{width}}" + "".join(f"{cell:<{other}}" for cell in row[1:]).rstrip() for row in table]
    same = [title.split()[0] for title, table in tables.items() if not table]
    lines += ["", f"The same in all: {', '.join(same)}."] if same else []
    return "\n".join([*lines, "", *verdicts])


def as_html(tables: Tables, verdicts: Sequence[str]) -> str:
    """Return the comparison as a page that needs no other file."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Runs compared</title>",
        "<style>body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td{padding:.25em 1.5em .25em 0;border-bottom:1px solid #ddd}"
        "td:first-child{color:#666}h2{font-size:1.1em;margin:1.5em 0 .3em}p{white-space:pre-line}</style>",
        "<h1>Runs compared</h1>",
        *(f"<p>{html.escape(verdict)}</p>" for verdict in verdicts),
    ]
    for title, table in tables.items():
        if table:
            rows = pd.DataFrame(table).to_html(index=False, header=False, border=0)
            parts.append(f"<h2>{html.escape(title)}</h2>{rows}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    cli.run(main)

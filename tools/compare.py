"""Compare runs: what differs between them, and whether the difference in test accuracy is real.

    python -m tools.compare seed-0 seed-1
    python -m tools.compare best 93c824800cbf4f12b0995cdb5167a671 --html compare.html

A run is named by its id, by its name (which is the DVC experiment's), or as `best`, the best by validation. The first
is compared with each of the others, image by image. With --log the page becomes an artifact of each of the runs.
"""

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.base import cli
from stages.base.files import replacing
from tools.runs import EvaluatedRun, Runs
from tools.statistics import RESAMPLES, bootstrap_interval, mcnemar, mean_interval

METRICS = ["test/accuracy", "test/loss", "test/macro_f1", "test/ece", "test/never_predicted", "best/valid_accuracy"]
SEED = "train.seed"


@dataclass(frozen=True)
class Table:
    title: str
    rows: list[list[str]]  # the first cell names the row


def main() -> None:
    parser = cli.parser("tools.compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two or more: run id, run name, or best")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--log", action="store_true", help="log the page to each of the runs, under comparisons/")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        parser.error("name two runs or more")
    runs = Runs()
    results = [runs.find(name) for name in arguments.runs]
    tables, verdicts = compare(results)
    print(as_text(tables, verdicts))
    page = as_html(tables, verdicts)
    if arguments.html:
        with replacing(arguments.html) as partial:
            partial.write_text(page, encoding="utf-8")
    if arguments.log:
        for result in results:
            others = "-".join(other.name for other in results if other is not result)
            runs.client.log_text(result.id, page, f"comparisons/{others}.html")


def compare(results: Sequence[EvaluatedRun]) -> tuple[list[Table], list[str]]:
    """Return what differs between the runs, and a sentence or more on each pair of the first with another."""
    header = Table("", [["run", *(result.name for result in results)], ["id", *(result.id[:8] for result in results)]])
    tables = [
        header,
        Table("metrics", [[name, *(_number(result.metrics.get(name)) for result in results)] for name in METRICS]),
        Table("parameters that differ", differences([result.params for result in results])),
        Table("data that differ", differences([result.data for result in results])),
        Table("code that differs", differences([_code(result) for result in results])),
        Table("environment that differs", differences([_environment(result) for result in results])),
    ]
    if seeds := over_seeds(results):
        tables.append(Table("test accuracy over seeds", seeds))
    return tables, [verdict(results[0], other) for other in results[1:]]


def differences(columns: Sequence[dict[str, str]]) -> list[list[str]]:
    """Return a row for each key whose values are not all the same."""
    keys = sorted(set().union(*columns))
    rows = [[key, *(column.get(key, "-") for column in columns)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


@dataclass(frozen=True)
class Pair:
    """Two runs on the same test images: how many each of them gets right alone, and what follows."""

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


def over_seeds(results: Sequence[EvaluatedRun]) -> list[list[str]]:
    """Return mean and 95 % interval of the test accuracy for each group of runs that differ in their seed alone."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, EvaluatedRun]] = defaultdict(dict)
    for result in results:
        rest = tuple(sorted((key, value) for key, value in result.params.items() if key != SEED))
        same = (*rest, ("test images", result.data["testing"]), *_code(result).items())
        groups[same][result.params[SEED]] = result
    rows = []
    for group in groups.values():
        if len(group) > 1:
            mean, half = mean_interval([result.metrics["test/accuracy"] for result in group.values()])
            names = ", ".join(result.name for result in group.values())
            rows.append([names, f"{mean:.4f} ± {half:.4f}", f"{len(group)} seeds, 95 % interval of the mean"])
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.6g}"


def _code(result: EvaluatedRun) -> dict[str, str]:
    commit = result.tags.get("mlflow.source.git.commit", "none")[:9]
    # What an experiment changes in params.yaml stands under the parameters.
    changed = [line.split(" b/")[-1] for line in result.patch.splitlines() if line.startswith("diff --git")]
    return {"commit": commit, "changed files": ", ".join(name for name in changed if name != "params.yaml") or "none"}


def _environment(result: EvaluatedRun) -> dict[str, str]:
    return {name.removeprefix("env."): value for name, value in result.tags.items() if name.startswith("env.")}


def as_text(tables: Sequence[Table], verdicts: Sequence[str]) -> str:
    """Return the comparison for a terminal, its columns aligned across the tables."""
    shown = [table for table in tables if table.rows]
    width = max(len(row[0]) for table in shown for row in table.rows) + 2
    other = max(len(cell) for table in shown for row in table.rows for cell in row[1:]) + 2
    lines = []
    for table in shown:
        lines += ["", table.title] if table.title else []
        lines += [
            "".join([f"  {row[0]:<{width}}", *(f"{cell:<{other}}" for cell in row[1:])]).rstrip() for row in table.rows
        ]
    same = [table.title.split()[0] for table in tables if not table.rows]
    lines += ["", f"The same in all: {', '.join(same)}."] if same else []
    return "\n".join([*lines, "", *verdicts])


def as_html(tables: Sequence[Table], verdicts: Sequence[str]) -> str:
    """Return the comparison as a page that needs no other file."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Runs compared</title>",
        "<style>body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td{padding:.25em 1.5em .25em 0;border-bottom:1px solid #ddd}"
        "td:first-child{color:#666}h2{font-size:1.1em;margin:1.5em 0 .3em}p{white-space:pre-line}</style>",
        "<h1>Runs compared</h1>",
        *(f"<p>{html.escape(verdict)}</p>" for verdict in verdicts),
    ]
    for table in tables:
        if table.rows:
            rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in table.rows)
            parts.append(f"<h2>{html.escape(table.title)}</h2><table>{rows}</table>")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    cli.run(main)

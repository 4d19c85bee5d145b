"""Compare runs: what differs between them, and whether the difference in test accuracy is real.

    python -m tools.compare seed-0 seed-1
    python -m tools.compare best 93c824800cbf4f12b0995cdb5167a671 --html compare.html

A run is named by its id, by its name (which is the DVC experiment's), or as `best`, the best by validation. The first
is compared with each of the others, image by image. The page also has curves, confusion matrices and the images on
which two runs differ, and needs no other file. With --log it becomes an artifact of each of the runs.
"""

import re
from pathlib import Path

from rich.cells import cell_len

from stages.base import cli
from stages.base.files import replacing
from stages.base.text import say
from tools.comparison import Comparison, compare
from tools.runs import Runs


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
    comparison = compare(runs)
    say(as_text(comparison))
    if not (arguments.html or arguments.log):
        return
    from tools.comparison_page import as_html

    page = as_html(comparison, store)
    if arguments.html:
        with replacing(arguments.html) as partial:
            partial.write_text(page, encoding="utf-8")
    if arguments.log:
        for run in runs:
            others = "-".join(other.name for other in runs if other is not run)
            name = re.sub(r"[^\w.-]", "_", others)[:60]  # as part of a path
            store.client.log_text(run.id, page, f"comparisons/{name}.html")


def as_text(comparison: Comparison) -> str:
    """Return the comparison for a terminal, its columns aligned across the tables."""
    head = [["run", *(run.name for run in comparison.runs)], ["id", *(run.id[:8] for run in comparison.runs)]]
    tables = {"": head} | comparison.tables
    columns = zip(*(row for table in tables.values() for row in table), strict=True)
    widths = [max(map(cell_len, column)) + 2 for column in columns]
    lines = []
    for title, table in tables.items():
        lines += ["", title] if title and table else []
        for row in table:
            # Some letters are two columns wide.
            cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"  {''.join(cells).rstrip()}")
    for texts in ([comparison.same] if comparison.same else [], comparison.remarks, comparison.verdicts):
        lines += ["", *texts] if texts else []
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)

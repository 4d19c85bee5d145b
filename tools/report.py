"""Write the report of a run as one file to hand on: HTML that needs no other file, its pictures are in it.

    python -m tools.report best --html scores/report.html

RUN is a run by id, by name (DVC's), or as `best`, the best by validation; or a model of the registry,
repronet@champion, which stands for its run. The report is the one that evaluate wrote, plots/report.md, with what
MLflow knows of the run: commit, machine, versions.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import replacing
from stages.base.text import say
from tools.html import STYLE, embedded, text
from tools.runs import EvaluatedRun, Runs

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

REPORT, PICTURE = "plots/report.md", re.compile(r"pictures/([\w.-]+)\.png")
# Of a run's tags those that say where it comes from, as the page calls them.
FACTS = {
    "commit": "mlflow.source.git.commit",
    "differed from it": "git.dirty",
    "experiment": "dvc.exp_name",
    "sweep": "sweep",
    "user": "mlflow.user",
    "CPU": "env.cpu",
    "device": "env.device",
    "threads": "env.threads",
    "Python": "env.python",
    "torch": "env.torch",
}
PICTURES = """
img { display: block; margin: 1em 0; max-width: 100% } td[style*=right], th[style*=right] { text-align: right }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: .85em }
"""


def main() -> None:
    parser = cli.parser("tools.report", __doc__)
    names = "run id, run name, MODEL@ALIAS, or best, the default"
    parser.add_argument("run", nargs="?", default="best", metavar="RUN", help=names)
    parser.add_argument("--html", type=Path, required=True, metavar="FILE", help="page to write")
    arguments = parser.parse_args()
    store = Runs()
    run = store.meant(arguments.run)
    if run.remark:
        say(run.remark)
    page = as_html(run, store)
    with replacing(arguments.html) as partial:
        partial.write_text(page, encoding="utf-8")
    say(f"{arguments.html}: {run.name} ({run.id[:8]}), {len(page) / 1e6:.1f} MB")


def as_html(run: EvaluatedRun, store: Runs) -> str:
    """Return the page. Raises InputError for a run that has no report."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if (file := store.artifact(run, REPORT, folder)) is None:
            raise InputError(
                f"the run {run.name} ({run.id[:8]}) has no {REPORT}, as earlier code wrote none: dvc exp apply it, and"
                " dvc repro with today's code is a run that has one"
            )
        body = markdown(store, run, folder).render(file.read_text(encoding="utf-8"))
    facts = {what: run.tags.get(tag, "") for what, tag in FACTS.items()}
    rows = "".join(f"<tr><td>{text(what)}</td><td>{text(value)}</td></tr>" for what, value in facts.items() if value)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta http-equiv=Content-Security-Policy"
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{text(run.name)}</title><style>{STYLE}{PICTURES}</style>",
        body,
        f'<h2>The run</h2><p><a href="{text(run.link)}">{text(run.name)}</a> {text(run.id)}</p>',
        f"<div><table>{rows}</table></div>",
    ]
    return "\n".join(parts) + "\n"


def markdown(store: Runs, run: EvaluatedRun, folder: Path) -> "MarkdownIt":
    """Return what makes HTML of a report: its pictures are the run's, and what is HTML in it is shown as it stands."""
    from markdown_it import MarkdownIt

    def picture(_renderer: Any, tokens: Any, place: int, _options: Any, _env: Any) -> str:
        token = tokens[place]
        found = PICTURE.fullmatch(str(token.attrs["src"]))
        file = store.artifact(run, f"plots/pictures/{found[1]}.png", folder) if found else None
        if file is None:
            return f"<p>{text(token.content)}: not there</p>"
        return f'<img alt="{text(token.content)}" src="{embedded("png", file.read_bytes())}">'

    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    made.add_render_rule("image", picture)
    return made


if __name__ == "__main__":
    cli.run(main)

"""Write the comment for a pull request: what differs from BASE, and whether dvc.lock is what comes out here.

    python -m tools.review origin/main --out review.md
    python -m tools.review origin/main --out review.md --pictures https://example.org/pictures

Run it after `dvc repro`: metrics and params are those of the workspace, as DVC shows them, beside those of BASE, any
commit, branch or tag. A comment on GitHub holds no files: with --pictures it shows the confusion matrix that is at this
address, where someone has to put the files of plots/pictures. .github/workflows/review.yaml does.
"""

import subprocess
import sys
from pathlib import Path

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.files import replacing
from stages.base.text import say
from stages.tracking.git import GitError, git
from tools.commits import text_at
from tools.dvclock import as_yaml, digests_of

LOCK, CONFUSION = Path("dvc.lock"), Path("plots/pictures/confusion.png")


def main() -> None:
    parser = cli.parser("tools.review", __doc__)
    parser.add_argument("base", metavar="BASE", help="the commit to compare with, such as origin/main")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the Markdown that is written")
    parser.add_argument("--pictures", default="", metavar="URL", help="where the files of plots/pictures can be seen")
    arguments = parser.parse_args()
    page = comment(commit_of(arguments.base), arguments.pictures)
    with replacing(arguments.out) as partial:
        partial.write_text(page, encoding="utf-8")
    say(f"{arguments.out}: {verdict()}")


def commit_of(name: str) -> str:
    """Return the digest of a commit. Raises InputError if git knows none of this name."""
    git("rev-parse", "--git-dir")  # says itself that this is no repository
    try:
        return git("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}").strip()
    except GitError as error:
        raise InputError(f"no commit is called {name!r} here; if it is on a server, git fetch brings it") from error


def comment(base: str, pictures: str) -> str:
    """Return the Markdown."""
    parts = [f"## Compared with {base[:9]}", verdict()]
    for kind in ("metrics", "params"):
        parts += [f"### {kind.capitalize()}", differences(kind, base) or f"No {kind} differ."]
    if pictures and CONFUSION.exists():
        parts += ["### Confusion", f"![Confusion matrix]({pictures.rstrip('/')}/{CONFUSION.name})"]
    return "\n\n".join(parts) + "\n"


def differences(kind: str, base: str) -> str:
    """Return DVC's table of the metrics or params that differ from a commit, "" if none do."""
    command = [sys.executable, "-m", "dvc", kind, "diff", "--md", base]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"dvc {kind} diff failed: {done.stderr.strip()}")
    table = done.stdout.replace(base, base[:9]).strip()
    return table if len(table.splitlines()) > 2 else ""  # the first two are its head


def verdict() -> str:
    """Return whether dvc.lock is still the commit's, and which outputs are not."""
    if not LOCK.exists():
        raise InputError(f"there is no {LOCK}: run dvc repro first")
    here, committed = LOCK.read_text(encoding="utf-8"), text_at("HEAD", str(LOCK))
    if here == committed:
        return f"`{LOCK}` is reproduced: this machine comes to the committed digests."
    new, old = (digests_of(as_yaml(text.encode()), "outs") for text in (here, committed))
    others = listed(f"`{path}`" for path in new if new[path] != old.get(path))
    why = (
        f"this machine comes to another {others}"
        if others
        else "the outputs are the committed ones, the inputs are not"
    )
    return f"**`{LOCK}` is not reproduced**: {why}."


if __name__ == "__main__":
    cli.run(main)

"""DVC's cache: what of it neither what is kept needs, nor any data that a user brought.

`dvc gc` keeps what the workspace and one commit need. So a commit is made whose one file names all that is to be kept.
No branch or tag holds it: git removes it by itself.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from stages.base.errors import InputError
from stages.tracking.git import git, git_bytes, prefix
from tools import recorded
from tools.commits import lock_at
from tools.dvclock import as_yaml, stages_of
from tools.sweep.copies import dvc
from tools.tidy.piece import Piece

BRANCHES = ("--ignore-missing", "HEAD", "--branches", "--tags", "--remotes")  # there is no HEAD before the first commit
STASHES = ("refs/stash", "refs/exps/celery/stash")  # what the user put aside, and the experiments in DVC's queue
DIGESTS = ("md5", "hash", "size", "nfiles", "files")  # of what DVC says of an output, by which its cache knows it
REMOVED = "Removing "  # what begins a line of `dvc gc --dry`
# What a patch adds to the files by which DVC knows data.
FILE_OF_DVC = re.compile(r"^diff --git .*\.dvc\"?\n((?:(?!diff --git ).*\n)*)", re.MULTILINE)
DIGEST = re.compile(r"^\+[- ]+md5: ([0-9a-f]{32}(?:\.dir)?)$", re.MULTILINE)


def unneeded(dropped: Collection[str], commits: Collection[str], patches: Collection[str]) -> Iterator[Piece]:
    """Yield what DVC's cache holds besides data, and outputs of branches, tags, workspace, and of experiments.

    Of experiments these commits are `dropped`. Data are those that any commit or experiment here names in a .dvc file,
    or one of `commits` or `patches` of runs. Raises InputError if DVC fails, or is at work.
    """

    def run(*options: str) -> str:
        # What is kept is looked up each time: by now there may be more.
        put_aside = stashes()
        kept = [each.commit for each in recorded.experiments() if each.commit not in dropped]
        outs = [*outputs([*results(), *put_aside, *kept]), *data([*commits, *put_aside]), *of_patches(patches)]
        return gc("--force", "--rev", commit_of(outs), *options)

    lines = run("--dry").splitlines()
    files = [Path(line.removeprefix(REMOVED)) for line in lines if line.startswith(REMOVED)]
    if files:
        sizes = sum(file.stat().st_size for file in files)
        why = "no commit, experiment that is kept, or workspace needs them; nor are they data"

        def remove() -> None:
            run()

        yield Piece("cache", f"{len(files):,} file{'s' * (len(files) > 1)}", why, sizes, remove)


def results() -> list[str]:
    """Return the commits of branches and tags, one at least for each state of dvc.lock."""
    return git("log", "--full-history", "--format=%H", *BRANCHES, "--", "dvc.lock").split()


def stashes() -> list[str]:
    """Return the commits that git or DVC's queue has put aside."""
    there = [ref for ref in STASHES if git("for-each-ref", ref)]
    return [commit for ref in there for commit in git("log", "--walk-reflogs", "--format=%H", ref).split()]


def outputs(commits: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what dvc.lock says of each output at these commits."""
    for commit in commits:
        for stage in stages_of(lock_at(commit)).values():
            yield from stage.get("outs", [])


def data(commits: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what the .dvc files say of their data, of all that any branch, tag or experiment holds, or these do."""
    asked = git_bytes("cat-file", "--batch-check=%(objectname)", stdin="\n".join(commits).encode()).decode()
    there = [line for line in asked.splitlines() if not line.endswith(" missing")]
    options = ("--all", "--full-history", "-m", "--root", "--raw", "--no-abbrev", "--format=")
    changes = git("log", *options, *there, "--", "*.dvc").splitlines()
    for blob in dict.fromkeys(line.split()[3] for line in changes):
        if blob.strip("0"):  # else a file was removed
            yield from as_yaml(git_bytes("cat-file", "blob", blob)).get("outs", [])


def of_patches(patches: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what .dvc files that are new or other in these patches say of their data."""
    for patch in patches:
        for match in FILE_OF_DVC.finditer(patch):
            yield from ({"md5": digest, "hash": "md5"} for digest in DIGEST.findall(match[1]))


def commit_of(kept: Collection[dict[str, Any]]) -> str:
    """Return a commit whose one .dvc file names these outputs and data."""
    texts = dict.fromkeys(json.dumps({name: out[name] for name in DIGESTS if name in out}) for out in kept)
    outs = [json.loads(text) | {"path": f"{number:06}"} for number, text in enumerate(texts)]
    blob = _made("hash-object", "-w", "--stdin", content=json.dumps({"outs": outs}))
    tree = _made("mktree", content=f"100644 blob {blob}\tkept.dvc\n" if outs else "")
    for part in reversed(prefix().parts):
        tree = _made("mktree", "-z", content=f"040000 tree {tree}\t{part}\0")
    nobody = "tidy <> 0 +0000"
    commit = f"tree {tree}\nauthor {nobody}\ncommitter {nobody}\n\nwhat tools.tidy keeps in DVC's cache\n"
    return _made("hash-object", "-t", "commit", "-w", "--stdin", content=commit)


def check_own() -> None:
    """Raise InputError if other repositories may have files in DVC's cache, too."""
    place, repository = (
        Path(dvc("cache", "dir")).resolve(),
        Path(git("rev-parse", "--show-toplevel").removesuffix("\n")),
    )
    if not place.is_relative_to(repository.resolve()):
        raise InputError(
            f"{place} is outside of this repository, and what others have there would go, too; --shared-cache includes"
            " it"
        )


def gc(*options: str) -> str:
    """Return what `dvc gc` prints. Raises InputError with the last line of what it says if it fails."""
    try:
        return dvc("gc", *options)
    except InputError as error:
        raise InputError(f"dvc gc failed: {str(error).rpartition(chr(10))[2]}") from error


def _made(*command: str, content: str) -> str:
    """Return the name of what git makes of the content."""
    return git_bytes(*command, stdin=content.encode()).decode().strip()

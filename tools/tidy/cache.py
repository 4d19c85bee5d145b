"""DVC's cache: what of it belongs to runs that could be made again, and nothing else names.

`dvc gc` deletes what is not named, and so what nobody could make again: data of commits that git's reflog alone has,
files of a folder whose list is lost. Here goes what is named, by a run that was shown to come back.
"""

from collections.abc import Collection, Iterator
from functools import cache as once
from pathlib import Path

from stages.base.errors import InputError
from stages.tracking.git import git, git_bytes
from tools.commits import cached, contents, list_of
from tools.tidy.again import DIGEST
from tools.tidy.piece import Piece, of_files

BRANCHES = ("--ignore-missing", "HEAD", "--branches", "--tags", "--remotes")  # there is no HEAD before the first commit
LOCKS, DATA = ":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc"
RAW = ("--full-history", "-m", "--root", "--raw", "--no-abbrev", "--no-renames", "--format=")
NO_BLOB = "0" * 40


def why_shared() -> str:
    """Return why others may have files in DVC's cache, too, "" if it is this project's own."""
    cache = cached("0" * 32)
    if not cache.resolve().is_relative_to(Path.cwd() / ".dvc" / "cache"):
        return f"it is outside of this project: {cache.parents[3]}"
    others = {*git("ls-files", ":(top,glob)**/.dvc/config").split("\n")[:-1]} - {".dvc/config"}
    return f"this repository has other projects of DVC: {min(others)}" if others else ""


def committed() -> list[str]:
    """Return each dvc.lock of branches and tags, and those of the working tree."""
    return [*_texts(git("log", *RAW, *BRANCHES, "--", LOCKS)).values(), *_of_tree(LOCKS)]


def unneeded(
    made: Collection[str], last: Collection[str], dropped: Collection[str], texts: Collection[str]
) -> Iterator[Piece]:
    """Yield the outputs with the digests `made` that are in DVC's cache, and that nothing needs.

    Those `last` go last: by them it is known that there is more to remove. Needed is what any .dvc file or dvc.lock
    names of what git holds, but for the locks of the commits `dropped` of experiments, what those of the working tree
    name, and what `texts` do. Raises InputError if it cannot be told.
    """
    log = ("log", "--stdin", *RAW)
    tips = {*_tips()}
    locks, data = (
        [*_texts(git_bytes(*log, stdin="\n".join([*of, "--", path, ""]).encode()).decode()).values(), *_of_tree(path)]
        for path, of in ((LOCKS, tips - {*dropped}), (DATA, tips))
    )
    kept = {digest for text in [*locks, *data, *texts] for digest in DIGEST.findall(text)}
    lists = {digest for text in data for digest in DIGEST.findall(text) if digest.endswith(".dir")}
    if lost := sorted(digest for digest in lists if not cached(digest).exists()):
        raise InputError(f"of data that .dvc files name it lacks the lists of {len(lost):,} folders, such as {lost[0]}")
    kept |= {file for digest in kept if digest.endswith(".dir") for file in list_of(digest).values()}
    files = {file for digest in made for file in [*list_of(digest).values(), digest]} - kept
    # A list of files goes after these: what a kill has left of them is found by it.
    order = sorted(files, key=lambda digest: (digest in last, digest.endswith(".dir"), digest))
    if there := [path for path in map(cached, order) if path.exists()]:
        what = f"{len(there):,} file{'s' * (len(there) > 1)}"
        yield of_files("cache", what, "outputs of runs that have no model, or lose it", there)


def _tips() -> list[str]:
    """Return what refs hold, those of experiments and of DVC's queue among them, and what the reflogs of all have."""
    options = ("--walk-reflogs", "--format=%H")
    return [*git("for-each-ref", "--format=%(objectname)").split(), *git("log", *options, "--all", "HEAD").split()]


@once
def _texts(log: str) -> dict[str, str]:
    blobs = {line.split()[3] for line in log.splitlines() if line.startswith(":")} - {NO_BLOB}
    return {name: text.decode(errors="replace") for name, text in contents(blobs).items()}


def _of_tree(path: str) -> list[str]:
    """Return the texts of the files of the working tree at git's `path`; of dvc.lock in any case."""
    top = Path(git("rev-parse", "--show-toplevel").removesuffix("\n"))
    options = ("-z", "--cached", "--others", "--exclude-standard", "--full-name")  # what is ignored are runs' artifacts
    names = git("ls-files", *options, "--", path).split("\0")[:-1]
    own = [Path.cwd() / "dvc.lock"] * (path == LOCKS)
    files = dict.fromkeys([*(top / name for name in names), *own])
    return [file.read_text(errors="replace") for file in files if file.is_file()]

"""DVC's cache: what of it belongs to runs that could be made again, and nothing else names.

`dvc gc` deletes what is not named, and so what nobody could make again: data of commits that git's reflog alone has,
files of a folder whose list is lost. Here goes what is named, by a run that was shown to come back.
"""

from collections.abc import Collection
from pathlib import Path

from stages.base.errors import InputError
from stages.tracking.git import git, git_bytes
from tools.commits import cached, contents, list_of
from tools.tidy.again import DIGEST

LOCKS, DATA = ":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc"
NO_BLOB = "0" * 40


def why_shared() -> str:
    """Return why others may have files in DVC's cache, too, "" if it is this project's own."""
    from dvc.config import Config

    cache = cached("0" * 32)
    if not cache.resolve().is_relative_to(Path.cwd() / ".dvc" / "cache"):
        return f"it is outside of this project: {cache.parents[3]}"
    if told := sorted({"dir", "shared"} & Config.from_cwd(validate=False).get("cache", {}).keys()):
        return f"others may use it: DVC's configuration has cache.{told[0]}"
    others = {*git("ls-files", ":(top,glob)**/.dvc/config").split("\n")[:-1]} - {".dvc/config"}
    return f"this repository has other projects of DVC: {min(others)}" if others else ""


def committed(tips: Collection[str]) -> list[str]:
    """Return each dvc.lock of these commits and of those before them, and those of the working tree."""
    return [*_of_commits(tips, LOCKS), *_of_tree(LOCKS)]


def unneeded(made: Collection[str], dropped: Collection[str], texts: Collection[str]) -> list[Path]:
    """Return the files of DVC's cache that are outputs with the digests `made`, and that nothing needs.

    Needed is what any .dvc file or dvc.lock names of what git holds, but for the locks of the commits `dropped` of
    experiments, what those of the working tree name, and what `texts` do. Raises InputError if it cannot be told.
    """
    tips = {*_tips()}
    data = [*_of_commits(tips, DATA), *_of_tree(DATA)]
    kept = _digests([*_of_commits(tips - {*dropped}, LOCKS), *data, *_of_tree(LOCKS), *texts])
    if lost := sorted(one for one in _digests(data) if one.endswith(".dir") and not cached(one).exists()):
        raise InputError(f"of data that .dvc files name it lacks the lists of {len(lost):,} folders, such as {lost[0]}")
    kept |= {file for digest in kept for file in list_of(digest).values()}
    files = {file for digest in made for file in [*list_of(digest).values(), digest]} - kept
    # A list of files goes last: what a kill has left of them is found by it.
    return [path for path in map(cached, sorted(files, key=lambda one: one.endswith(".dir"))) if path.exists()]


def _digests(texts: Collection[str]) -> set[str]:
    return {digest for text in texts for digest in DIGEST.findall(text)}


def _tips() -> list[str]:
    """Return what refs hold, those of experiments and of DVC's queue among them, and what the reflogs of all have."""
    options = ("--walk-reflogs", "--format=%H")
    return [*git("for-each-ref", "--format=%(objectname)").split(), *git("log", *options, "--all", "HEAD").split()]


def _of_commits(tips: Collection[str], path: str) -> list[str]:
    """Return the texts that the files at git's `path` have had in these commits, and in those before them."""
    raw = ("--full-history", "-m", "--root", "--raw", "--no-abbrev", "--no-renames", "--format=")
    log = git_bytes("log", "--stdin", *raw, stdin="\n".join([*tips, "--", path, ""]).encode())
    blobs = {line.split()[3].decode() for line in log.splitlines() if line.startswith(b":")} - {NO_BLOB}
    return [text.decode(errors="replace") for text in contents(blobs).values()]


def _of_tree(path: str) -> list[str]:
    """Return the texts of the files of the working tree at git's `path`; of dvc.lock in any case."""
    top = Path(git("rev-parse", "--show-toplevel").removesuffix("\n"))
    options = ("-z", "--cached", "--others", "--exclude-standard", "--full-name")  # what is ignored are runs' artifacts
    names = git("ls-files", *options, "--", path).split("\0")[:-1]
    own = [Path.cwd() / "dvc.lock"] * (path == LOCKS)
    files = dict.fromkeys([*(top / name for name in names), *own])
    return [file.read_text(errors="replace") for file in files if file.is_file()]

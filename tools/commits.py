"""The project's files at a commit, those of git and those that DVC keeps, read with dvc.api.

Three things here have no public way in DVC, and come from its inner modules: the files of an older commit with today's
configuration, what is in its cache, and the error for a directory whose list of files is lost.
"""

import hashlib
import json
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stages.base.errors import InputError, listed
from stages.base.params import WEIGHTS
from stages.tracking.git import git, git_bytes, prefix
from tools.dvclock import as_yaml, stages_of

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem
    from dvc_data.hashfile.db import HashFileDB


def at_commit(commit: str) -> "DVCFileSystem":
    """Return the project's files at a commit, those of git and those that DVC keeps."""
    from dvc.api import DVCFileSystem
    from dvc.config import Config
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo
    from dvc.scm import SCM

    scm = SCM(".")
    files = GitFileSystem(scm=scm, rev=scm.resolve_rev(commit))
    # DVCFileSystem by itself would show the whole repository, of which the project may be a folder. With today's
    # configuration: the commit may be older than the remote, and DVC takes a relative path in the configuration of a
    # commit as one from / on.
    config = Config.from_cwd(validate=False)
    return DVCFileSystem(Repo(f"/{prefix()}", fs=files, scm=scm, config=config, uninitialized=True))


def check_commit(lock: dict[str, Any], fs: "DVCFileSystem") -> None:
    """Raise InputError if params or code were committed without the results that they give."""
    changed: dict[str, None] = {}
    stages = stages_of(lock).values()
    files = {file for stage in stages for file in stage.get("params", {})}
    read = {file: as_yaml(fs.read_bytes(file)) if fs.exists(file) else {} for file in files}
    for stage in stages:
        for file, params in stage.get("params", {}).items():
            values = read[file]
            changed |= {f"{file}: {key}": None for key, value in params.items() if _value(values, key) != value}
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            path = entry["path"]
            # What DVC keeps is found by its digest, so it is the right one.
            in_git = entry.get("hash") == "md5" and not Path(path).is_absolute() and not fs.isdvc(path)
            # Of folders those of code: of one with a source's images git may have a part.
            is_data = "nfiles" in entry and not fs.exists(f"{path}/__init__.py")
            # Nor has it weights that it ignores.
            is_data |= Path(path).is_relative_to(WEIGHTS) and not fs.exists(path)
            if in_git and not is_data and _digest(fs, path) != entry.get("md5"):
                changed[path] = None
    if changed:
        raise InputError(f"committed without dvc repro: {listed(changed)}")


def _value(values: Any, key: str) -> object:
    """Return what stands under a dotted key, None if nothing does."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _digest(fs: "DVCFileSystem", path: str) -> str:
    """Return the digest of a file or folder in git as dvc.lock has it, "" if there is none."""
    if not fs.exists(path):
        return ""
    if not fs.isdir(path):
        return _md5(fs.read_bytes(path))
    files = {PurePosixPath(file).relative_to(f"/{path}"): _md5(fs.read_bytes(file)) for file in fs.find(f"/{path}")}
    entries = [{"md5": digest, "relpath": str(file)} for file, digest in sorted(files.items())]
    return _md5(json.dumps(entries).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def copied(fs: "DVCFileSystem", path: str, folder: Path) -> bool:
    """Copy a file or folder into `folder`; return whether git, DVC's cache or a remote has it."""
    from dvc_data.index import DataIndexDirError

    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        fs.get(path, str(folder / path), recursive=True)
    except (FileNotFoundError, DataIndexDirError):
        return False
    return True


def text_at(commit: str, path: str) -> str:
    """Return a file of the project at a commit, "" if it is not there."""
    return git("show", f"{commit}:./{path}") if git("ls-tree", commit, path) else ""


def contents(names: Collection[str], folder: Path = Path()) -> dict[str, bytes]:
    """Return the content of each of git's objects that is there; a commit's file is called COMMIT:./PATH."""
    answer = git_bytes("cat-file", "--batch", folder=folder, stdin="".join(f"{name}\n" for name in names).encode())
    found, start = {}, 0
    for name in names:
        end = answer.index(b"\n", start)
        about, start = answer[start:end], end + 1
        if not about.endswith((b" missing", b" ambiguous")):
            size = int(about.rsplit(b" ", 1)[1])
            found[name], start = answer[start : start + size], start + size + 1
    return found


def still_missing(digests: dict[str, str]) -> list[str]:
    """Return which outputs of these digests are still nowhere to be had, as far as that is known at once.

    With a remote it is not.
    """
    from dvc.config import Config

    if not digests or Config.from_cwd(validate=False)["remote"]:
        return []
    # Of a remote that keeps versions a digest may be longer than a file's name.
    return [path for path, digest in digests.items() if not os.path.exists(cached(digest))]  # noqa: PTH110


def cached(digest: str) -> Path:
    """Return the file that DVC's cache has for a digest, as the project in the current directory has it, or would."""
    return Path(_cache(Path.cwd()).oid_to_path(digest))


def is_whole(digest: str) -> bool:
    """Return whether DVC's cache has a file, or a folder with all of its files."""
    return cached(digest).exists() and all(cached(file).exists() for file in list_of(digest).values())


@cache
def is_intact(digest: str) -> bool:
    """Return whether DVC's cache has a file, or a folder with all of its files, with the bytes that they had."""
    files = [cached(one) for one in (digest, *list_of(digest).values())]
    names = [digest.removesuffix(".dir"), *list_of(digest).values()]
    return all(file.is_file() and file_digests(file)[1] == name for file, name in zip(files, names, strict=True))


@cache
def file_digests(file: Path, *_changing: int) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file; other numbers say that it may be another since."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


def list_of(digest: str) -> dict[str, str]:
    """Return the digests of a folder's files by their paths in it; {} for a file, or where DVC's cache has no list."""
    file = cached(digest)
    return _listed(file) if digest.endswith(".dir") and file.exists() else {}


@cache
def _listed(file: Path) -> dict[str, str]:
    try:
        return {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_bytes())}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"DVC's cache is damaged: {file} is no list of files") from error


@cache
def _cache(_folder: Path) -> "HashFileDB":
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        cache: HashFileDB = Repo().cache.local
    except DvcException as error:
        raise InputError(f"DVC's cache cannot be used: {error}") from error
    return cache

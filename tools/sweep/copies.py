"""Copies of the repository that hold what the workspace holds, for experiments to run in."""

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from stages.base.errors import InputError
from stages.tracking.git import GitError, git, git_bytes, prefix

DVC = [sys.executable, "-m", "dvc"]
NO_DATA = (".git", "__pycache__")


def copy_repository(folder: Path, commit: str, patch: bytes, inputs: Collection[Path] = ()) -> None:
    """Make `folder` a copy of the repository at `commit` with `patch` applied, and with the same DVC cache.

    The project is at `prefix()` in it. Of what dvc.yaml depends on, and of the `inputs`, which experiments read
    besides, it holds all that the workspace has, also what git ignores or does not track. Raises InputError where it
    cannot, and where git does not know who the user is.
    """
    project = check_out(folder, commit, patch)
    with suppress(FileNotFoundError):  # what git ignores here, it should ignore there
        shutil.copy(git("rev-parse", "--git-path", "info/exclude").strip(), folder / ".git/info/exclude")
    _bring_inputs(project, inputs)
    for key in ("user.name", "user.email"):  # they may stand in this clone's own settings
        git("config", key, identity(key), folder=folder)
    with suppress(FileNotFoundError):
        shutil.copy(".dvc/config.local", project / ".dvc/config.local")
    cache = Path(dvc("cache", "dir")).resolve()
    dvc("cache", "dir", "--local", str(cache), folder=project)


def identity(key: str) -> str:
    """Return who the user is to git, by "user.name" or "user.email". Raises InputError if that is not known."""
    try:
        return git("config", key).strip()
    except GitError as error:
        raise InputError(f"DVC commits experiments, and git has no {key}: git config --global {key} …") from error


def check_out(folder: Path, commit: str, patch: bytes) -> Path:
    """Make `folder` a clone at `commit` with `patch` applied; return where the project is there. Raises GitError."""
    repository = git("rev-parse", "--show-toplevel").removesuffix("\n")
    git("clone", "-q", "--shared", "--no-checkout", repository, str(folder))
    git("checkout", "-q", "--detach", commit, folder=folder)
    if patch:
        git_bytes("apply", folder=folder, stdin=patch)
    return folder / prefix()


def _bring_inputs(folder: Path, inputs: Collection[Path]) -> None:
    """Let the copy at `folder` hold what the workspace has at the `inputs` and at the pipeline's other deps.

    What DVC keeps comes from its cache; here it is made sure that the copy will get what the workspace has.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root, kept, deps = Path.cwd(), set[Path](), set[Path]()
    try:
        with Repo() as repo:
            for dep in repo.index.deps:
                path = Path(dep.fs_path)
                if dep.protocol == "local" and path.exists() and path.is_relative_to(root):
                    deps.add(path.relative_to(root))
            for out in repo.index.outs:
                path, file = (Path(os.path.relpath(name)) for name in (out.fs_path, out.stage.path))
                kept.add(path)
                if out.stage.is_data_source and any(
                    read.is_relative_to(path) or path.is_relative_to(read) for read in inputs
                ):
                    if not (folder / file).exists():
                        raise InputError(
                            f"{file} is not in git, so an experiment would not have {path}; put it there with\n"
                            f"  git add {file} {path.parent / '.gitignore'} && git commit"
                        )
                    if path.exists() and out.status():
                        raise InputError(
                            f"{path} is not what {file} says, which experiments would get; dvc add {path} makes it so"
                        )
    except DvcException as error:
        raise InputError(f"DVC cannot read its files: {error}") from error
    for path in {*inputs, *deps}:
        if not path.is_absolute() and not any(path.is_relative_to(one) for one in kept):
            _bring(path, folder, kept)


def _bring(path: Path, folder: Path, kept: Collection[Path]) -> None:
    """Let the copy at `folder` hold all that is at the relative `path`, but for the `kept`. Raises InputError."""
    elsewhere = InputError(
        f"{path} is outside of the repository, and experiments run in folders of their own:"
        f" an absolute path is needed, {path.resolve()}"
    )
    if ".." in path.parts:
        raise elsewhere
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    for file in _files(path, kept):
        copied = folder / file
        if not _is_equal(file, copied):
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.unlink(missing_ok=True)
            try:
                # Not a symbolic link, which would lead out of the data's folder. The user's own stay as they are.
                os.link(file, copied, follow_symlinks=False)
            except (OSError, NotImplementedError):  # on another file system, or one without links to links
                shutil.copy(file, copied, follow_symlinks=False)
    if not (folder / path).exists():  # a link with a relative target
        raise elsewhere


def _files(path: Path, kept: Collection[Path]) -> Iterator[Path]:
    """Yield the files and links at `path`, but for the `kept`, git's own and compiled code."""
    if path in kept or path.name in NO_DATA:
        return
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            yield from _files(entry, kept)
    else:
        yield path


def _is_equal(file: Path, copied: Path) -> bool:
    if not os.path.lexists(copied):
        return False
    if file.is_symlink() or copied.is_symlink():
        return file.is_symlink() and copied.is_symlink() and file.readlink() == copied.readlink()
    return filecmp.cmp(file, copied, shallow=False)


def dvc(*arguments: str, folder: Path = Path()) -> str:
    """Return what DVC prints in `folder`. Raises InputError with what it says if it fails."""
    try:
        return subprocess.run([*DVC, *arguments], cwd=folder, capture_output=True, check=True, text=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        raise InputError(f"dvc {' '.join(arguments)} failed: {error.stderr.strip()}") from error

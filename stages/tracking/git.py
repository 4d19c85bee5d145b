"""The one place where git is run. It may print nothing; where it fails, that is a GitError."""

import os
import subprocess
from pathlib import Path

from stages.base.errors import InputError


class GitError(InputError):
    """git failed, or is not there; the message holds the command and what git said."""


def git(*arguments: str, folder: Path = Path()) -> str:
    """Return what git prints in `folder`. Raises GitError."""
    return git_bytes(*arguments, folder=folder).decode(errors="replace")


def git_bytes(*arguments: str, folder: Path = Path(), stdin: bytes = b"") -> bytes:
    """Return what git prints in `folder`, given `stdin`. Raises GitError."""
    # DVC may hold the index, so git must not wait for a lock on it.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, check=True).stdout
    except OSError as error:
        raise GitError(f"git cannot be run: {error}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise GitError(f"git {' '.join(arguments)} failed: {said or f'status {error.returncode}'}") from error


def untracked(*paths: str, folder: Path = Path(), ignored: bool = False) -> list[str]:
    """Return the files at git's `paths` that it does not track, from `folder` on; with those that it ignores, or not.

    Raises GitError.
    """
    options = [] if ignored else ["--exclude-standard"]
    names = git_bytes("ls-files", "-z", "--others", *options, "--", *paths, folder=folder).split(b"\0")
    return [os.fsdecode(name) for name in names if name]

"""The one place where git is run. It may print nothing; where it fails, that is a GitError.

Its answers are the same whatever the user has set for it, in files or in the environment. That is what an answer
depends on: who the user is, whose repositories they trust, and what they ignore stays theirs.
"""

import os
import subprocess
from pathlib import Path

from stages.base.errors import InputError
from stages.base.processes import without_git_redirects
from stages.base.text import shown_url

# What users may have set otherwise: it would change what is printed, or run their programs.
_SETTINGS = {
    "apply.whitespace": "nowarn",
    "clone.rejectShallow": "false",
    "color.diff": "false",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.quotePath": "false",
    "diff.algorithm": "default",
    "diff.context": "3",
    "diff.interHunkContext": "0",
    "diff.orderFile": os.devnull,
    "diff.relative": "false",
    "diff.renames": "true",
    "diff.suppressBlankEmpty": "false",
    "i18n.logOutputEncoding": "UTF-8",
    "log.follow": "false",
    "log.showSignature": "false",
    "status.renames": "true",
    "status.showUntrackedFiles": "normal",
}
# What no setting does, such as programs that .gitattributes may name together with the user's settings.
_OF_COMMAND = {"diff": ["--full-index", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/"]}
_OPTIONS = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]


class GitError(InputError):
    """git failed, or is not there; the message holds the command and what git said, but no password of a URL."""

    def __init__(self, message: str) -> None:
        super().__init__(shown_url(message))


def git(*arguments: str, folder: Path = Path()) -> str:
    """Return what git prints in `folder`. Raises GitError."""
    return git_bytes(*arguments, folder=folder).decode(errors="replace")


def prefix() -> Path:
    """Return where in its repository the current directory is, "." for its root. Raises GitError."""
    return Path(git("rev-parse", "--show-prefix").removesuffix("\n"))


def git_bytes(*arguments: str, folder: Path = Path(), stdin: bytes = b"", status: int = 0) -> bytes:
    """Return what git prints in `folder`, given `stdin`. Raises GitError if it ends with another status than this."""
    # DVC may hold the index, so git must not wait for a lock on it.
    name, *others = arguments
    command = ["git", "--no-pager", "--no-optional-locks", *_OPTIONS, name, *_OF_COMMAND.get(name, []), *others]
    environment = without_git_redirects(os.environ) | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        ended = subprocess.run(command, cwd=folder, env=environment, input=stdin, capture_output=True, check=False)
    except OSError as error:
        raise GitError(f"git cannot be run: {error}") from error
    if ended.returncode != status:
        said = ended.stderr.decode(errors="replace").strip()
        raise GitError(f"git {' '.join(arguments)} failed: {said or f'status {ended.returncode}'}")
    return ended.stdout


def untracked(*paths: str, folder: Path = Path(), ignored: bool = False) -> list[str]:
    """Return the files at git's `paths` that it does not track, from `folder` on; with those that it ignores, or not.

    Raises GitError.
    """
    options = [] if ignored else ["--exclude-standard"]
    names = git_bytes("ls-files", "-z", "--others", *options, "--", *paths, folder=folder).split(b"\0")
    return [os.fsdecode(name) for name in names if name]

"""Where the user's files may lie: in one folder, which no path and no link leaves."""

import stat
from pathlib import Path

from stages.base.errors import InputError
from stages.sources.rejections import Kind, Rejection

OUTSIDE_BY_LINK = Rejection(Kind.OUTSIDE, "a link that leads out of it")


def check_folder(path: Path, param: str = "prepare.path") -> None:
    """Raise InputError, which names the parameter, if there is no folder at `path`."""
    if not stat.S_ISDIR(mode(path, param)):
        raise InputError(f"{param}: {str(path)!r} is no folder")


def mode(path: Path, param: str) -> int:
    """Return the mode of the file or folder at `path`, 0 if there is none. Raises InputError if it cannot be read."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise InputError(f"{param}: {str(path)!r}: {error.strerror}") from error


def is_inside(path: str, folder: str) -> bool:
    """Return whether one real path is that of the folder, or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")

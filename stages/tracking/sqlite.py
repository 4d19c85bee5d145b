"""The SQLite file that a store can be: its address, its permissions, and the places of its artifacts.

It moves with the project, and so do the artifacts in the folder beside it: the places that it records follow.
"""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from stages.base.files import replacing

ADDRESS = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<file>file:)?(?P<path>[^?]*)(?P<query>\?.*)?", re.DOTALL)

HELD_SECONDS = 2.0  # a change to a run takes some ms of them; a stage that has ended waits for this up to twice

# Where MLflow keeps the places of artifacts.
PLACES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def address(database: Path) -> str:
    """Return the URI of a SQLite file.

    In it a ? would begin options, and %20 be a space. MLflow makes the folder of a plain URI as it stands there, so
    one with escapes names the driver, too: of these it makes none.
    """
    escaped = str(database).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{database}" if escaped == str(database) else f"sqlite+pysqlite:///{escaped}"


def database_of(uri: str) -> Path | None:
    """Return the file that the store at `uri` is, None if it is no SQLite file."""
    found = ADDRESS.fullmatch(uri)
    return Path(unquote(found["path"])) if found else None


def absolute(uri: str, root: Path) -> str:
    """Return `uri` as it is, or of a SQLite file with its path from `root` on; its options stay."""
    found = ADDRESS.fullmatch(uri)
    if not found:
        return uri
    path = root / unquote(found["path"])
    return f"sqlite:///file:{path}{found['query']}" if found["file"] else address(path) + (found["query"] or "")


def artifacts_of(database: Path) -> Path:
    """Return the folder of the artifacts of a store that is this file."""
    return database.parent / "mlartifacts"


def place(path: Path) -> str:
    """Return a local folder as MLflow takes it for artifacts: as a URI if its name has what means something in one."""
    return str(path) if path.as_uri() == f"file://{path}" else path.as_uri()


def lock_of(database: Path, purpose: str = "") -> FileLock:
    """Return the lock for changes to the file as a whole, or for another purpose."""
    return FileLock(f"{database}{purpose}.lock", timeout=60, mode=0o600)


def create(database: Path, fill: Callable[[str], object]) -> None:
    """Create the file, which `fill` makes a store at the address that it gets, unless it is there.

    Processes that meet a store which does not exist yet would race each other through its migrations and break it.
    Here the first one makes it, under a lock and another name, while the others wait. Nobody but its owner can read
    it, whatever the umask: SQLite gives its files beside it the same permissions.
    """
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(database):
        if database.exists():
            return
        folder = artifacts_of(database)
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o700)
        with replacing(database) as partial:
            partial.touch()
            partial.chmod(0o600)
            fill(address(partial))


def check(database: Path) -> None:
    """Raise if the file is no database, or another process keeps it to itself: MLflow would try for minutes."""
    with closing(sqlite3.connect(database, timeout=HELD_SECONDS)) as connection:
        connection.execute("select 1 from sqlite_master")


def follow(database: Path, experiment: str) -> None:
    """Let the places of artifacts that were beside the file before it was moved, or copied, be those beside it now.

    They are those in the folder of this experiment. What is not beside the file now, but still where it was, is left
    as it is.
    """
    here = artifacts_of(database)
    if _left(database, experiment, here) is None:
        return
    with lock_of(database), closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        old = _left(database, experiment, here)
        for table, columns in PLACES.items() if old else ():
            for column in columns:
                _move(connection, table, column, str(old), here)


def _left(database: Path, experiment: str, here: Path) -> str | None:
    """Return the place of an experiment that was made beside the file when it was elsewhere, None where it was not."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        try:
            query = "select artifact_location from experiments where name = ?"
            [found] = connection.execute(query, (experiment,)).fetchone() or [None]
        except sqlite3.OperationalError:  # another kind of database, of which MLflow says what is wrong
            return None
    old = path_of(found or "")
    was_beside = old.is_absolute() and old.name == here.name and old != here
    return found if was_beside and _is_here(old, here) else None


def _move(connection: sqlite3.Connection, table: str, column: str, old: str, here: Path) -> None:
    """Write the present places of all in `column` that are `old`, or in it."""
    query = f"select distinct {column} from {table} where {column} = ? or substr({column}, 1, ?) = ?"
    for (was,) in connection.execute(query, (old, len(old) + 1, f"{old}/")).fetchall():
        new = place(here) + was.removeprefix(old)  # what follows are ids
        if _is_here(path_of(was), path_of(new)):
            connection.execute(f"update {table} set {column} = ? where {column} = ?", (new, was))


def _is_here(old: Path, new: Path) -> bool:
    return new.exists() or not old.exists()


def path_of(text: str) -> Path:
    """Return the local path of a place, "" if it has none."""
    if not re.match(r"[\w+.-]+:", text):
        return Path(text)
    return Path(url2pathname(urlsplit(text).path) if text.startswith("file:") else "")

"""What processes that were killed have left on this disk: journals, checkpoints, copies."""

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.locks import locked_if_free
from stages.tracking import journal
from stages.tracking.git import GitError, git
from stages.tracking.result import WEIGHTS_TAG
from tools import recorded
from tools.rebuild.again import folder_of
from tools.sweep.local import COPIES, left_running
from tools.tidy.piece import Piece

DAY = 86_400.0


class Leftovers:
    """What was left; nothing of it goes that MLflow may still want."""

    def __init__(self, weights: Collection[str], trainings: Collection[str]) -> None:
        """MLflow has the `weights` with these digests, and the ends of these `trainings`."""
        self._weights, self._trainings = weights, trainings
        self.waiting: list[str] = []  # what stays, and why
        self.has_results = False  # whether a copy of a sweep has some that DVC does not know yet

    def pieces(self) -> Iterator[Piece]:
        """Yield what can go."""
        for folder in _folders(journal.folder_of(os.environ)):
            if why := self._why_journal(folder):
                yield _piece("journal", folder, why)
        yield from self._checkpoints()
        for folder in _folders(folder_of(os.environ)):
            with locked_if_free(folder) as is_free:
                if is_free:
                    yield _piece("rebuild", folder, "its rebuild was killed")
        for folder in _folders(COPIES):
            if why := self._why_copy(folder):
                yield _piece("copy", folder, why)
        for place in (Path(".dvc/tmp/exps"), Path(".dvc/tmp/exps/standalone")):
            for folder in place.glob("tmp*"):
                yield _piece("copy", folder, "its dvc exp run was killed")

    def _why_journal(self, folder: Path) -> str:
        """Return why a journal is of no use any more, "" if it is."""
        if folder.suffix == journal.DONE:
            return "MLflow has all of it"
        events: list[journal.Event] = []
        with suppress(OSError, InputError):  # of later code
            events = journal.Events(folder).read()
            if not events and not folder.suffix and journal.is_forgotten(folder):
                return "its process was killed at its start"
        digests = {event.get("tags", {}).get(WEIGHTS_TAG) for event in events} - {None}
        if folder.suffix == journal.DAMAGED and digests <= {*self._weights}:
            return "damaged, and its result has a run in MLflow" if digests else "damaged, and came to no result"
        self.waiting.append(f"journal {folder.name}: MLflow has not got all of it; python -m tools.sync brings it")
        return ""

    def _checkpoints(self) -> Iterator[Piece]:
        from stages.training.checkpoints import ATTEMPTS, FORGOTTEN_SECONDS  # with torch

        files = sorted((home(os.environ) / "checkpoints").glob("*.*"))
        for stem in dict.fromkeys(file.with_suffix("") for file in files):
            own = [file for file in files if file.with_suffix("") == stem]
            age = time.time() - max(file.stat().st_mtime for file in own)
            training = ""
            with suppress(OSError, ValueError, TypeError, KeyError):  # it has none, or it is cut
                training = json.loads(stem.with_suffix(ATTEMPTS).read_bytes())["training"]
            if training in self._trainings:
                why = "its training has ended"
            elif age > FORGOTTEN_SECONDS:
                why = f"nobody came back to it for {age / DAY:.0f} days"
            else:
                continue
            yield Piece("checkpoint", stem.name, why, sum(map(_size, own)), partial(_remove, own))

    def _why_copy(self, folder: Path) -> str:
        """Return why the copies of a sweep are of no use any more, "" if they are."""
        if left_running(folder):
            self.waiting.append(f"copy {folder}: processes of the sweep run there")
            return ""
        there = {(each.name, each.commit) for each in recorded.experiments()}
        for copy in folder.glob("[!.]*"):
            with suppress(GitError):  # it was not made to its end
                format_ = "--format=%(refname:lstrip=4) %(objectname)"
                for line in git("for-each-ref", format_, "refs/exps/??/*/*", folder=copy).splitlines():
                    if tuple(line.split()) not in there:
                        self.waiting.append(f"copy {copy}: holds a result; the same python -m tools.sweep takes it")
                        self.has_results = True
                        return ""
        return "its sweep was killed"


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _piece(kind: str, folder: Path, why: str) -> Piece:
    return Piece(kind, folder.name, why, _size(folder), partial(_remove, [folder]))


def _size(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_symlink() or file.is_file())


def _remove(paths: Collection[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

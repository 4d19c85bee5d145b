"""What processes that were killed have left on this disk, and nobody can want: journals, checkpoints, rebuilds."""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from stages.base.experiment import home, main_repository
from stages.base.locks import locked_if_free
from stages.tracking import journal
from tools.rebuild.again import folder_of
from tools.tidy.piece import Piece, of_files

DAY = 86_400.0


def waiting() -> int:
    """Return how many journals are there that MLflow has not got the whole of, or that are damaged."""
    return sum(folder.suffix != journal.DONE for folder in _folders(journal.folder_of(os.environ)))


def pieces(ended: Collection[str]) -> Iterator[Piece]:
    """Yield what can go; `ended` are trainings that have, by their ids. Nothing, where others may share the place."""
    if not home(os.environ).resolve().is_relative_to(main_repository(os.environ)):
        return
    for folder in _folders(journal.folder_of(os.environ)):
        if folder.suffix == journal.DONE:
            yield of_files("journal", folder.name, "MLflow has all of it", [folder])
    yield from _checkpoints(ended)
    for folder in _folders(folder_of(os.environ)):
        with locked_if_free(folder) as is_free:
            if is_free:
                yield of_files("rebuild", folder.name, "its rebuild was killed", [folder])


def _checkpoints(ended: Collection[str]) -> Iterator[Piece]:
    from stages.training.checkpoints import ATTEMPTS, FORGOTTEN_SECONDS, SUFFIX  # with torch

    files = sorted((home(os.environ) / "checkpoints").glob("*.*"))
    for stem in dict.fromkeys(file.with_suffix("") for file in files):
        own = [file for file in files if file.with_suffix("") == stem]
        age = time.time() - max(file.stat().st_mtime for file in own)
        training = ""
        with suppress(OSError, ValueError, TypeError, KeyError):  # then it stays until it is old
            training = json.loads(stem.with_suffix(ATTEMPTS).read_bytes())["training"]
        with locked_if_free(stem.with_suffix(SUFFIX)) as is_free:
            if is_free and (training in ended or age > FORGOTTEN_SECONDS):
                why = "its training has ended" if training in ended else f"left {age / DAY:.0f} days ago"
                yield of_files("checkpoint", stem.name, why, own)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []

"""Which attempt at some work this is: what was killed is tried again, and stays the same work."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from stages.base.files import write_synced


@dataclass(frozen=True)
class Attempt:
    """One attempt at a training."""

    training: str  # an id that all attempts at it have, and no other training anywhere
    number: int  # from 1


def next_attempt(file: Path) -> Attempt:
    """Return the attempt after the one that `file` tells of, and let it tell of this one: the first, if it is missing.

    The file is to be removed when the work is done. Raises OSError if it cannot be written.
    """
    # The folder's number stays when the project is moved, or the machine gets another name; one that its files are
    # copied into has another.
    attempt, place = Attempt(uuid4().hex, 1), file.parent.stat().st_ino
    with suppress(OSError, ValueError, TypeError, KeyError):
        before = json.loads(file.read_bytes())
        if before["place"] == place:  # else it is a copy, which goes its own way
            attempt = Attempt(str(before["training"]), int(before["number"]) + 1)
    write_synced(file, json.dumps(asdict(attempt) | {"place": place}).encode())
    return attempt

"""What follows from a commit alone, kept so that `tools.sync` reads each commit once.

Neither a commit nor what the same code makes of it ever changes. It is in .dvc/tmp/commits, in a folder for this code;
those of other code are removed. All of it may be deleted: it is read from the commits again.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from stages.base.files import sha256

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Held:
    """What the run of a result holds."""

    params: dict[str, str]  # as MLflow keeps them
    digests: dict[str, str]  # the tags of training and evaluation
    artifacts: list[str]  # their names


@dataclass(frozen=True)
class Facts:
    """What is known of the result in a commit."""

    identity: str | None = None  # equal for commits of one result, "" where there is none; None: not known
    unusable: str = ""  # why it cannot be used, for good
    missing: dict[str, str] = field(default_factory=dict)  # digests of outputs that were nowhere to be had
    held: Held | None = None  # None: not known


def of(commit: str) -> Facts:
    """Return what was kept of a commit, nothing of one that is not known or whose file is damaged."""
    try:
        kept = json.loads((_folder() / f"{commit}.json").read_bytes())
        return Facts(**kept | {"held": kept["held"] and Held(**kept["held"])})
    except (OSError, ValueError, TypeError, KeyError):
        return Facts()


def add(commit: str, **known: Any) -> None:
    """Keep more of a commit, where there is a place for it."""
    folder = _folder()
    with suppress(OSError):
        if not folder.is_dir():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
        partial = folder / f"{commit}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(replace(of(commit), **known))), encoding="utf-8")
        partial.replace(folder / f"{commit}.json")


def _folder() -> Path:
    return Path(".dvc/tmp/commits", _code())


@cache
def _code() -> str:
    """Return the digest of the code of stages and tools."""
    return sha256(*sorted(path for name in ("stages", "tools") for path in (PROJECT / name).rglob("*.py")))[:16]

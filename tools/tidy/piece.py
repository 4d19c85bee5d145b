"""What can be removed, one piece each, how it is removed, and how a list of pieces is shown."""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.base.text import one_line

MOST = 8  # pieces of a kind that are listed one by one
GOING = ".tidied"  # what is called so was to go when its removal was killed


@dataclass(frozen=True)
class Piece:
    """Something that nothing needs."""

    kind: str  # model, cache, journal, checkpoint, rebuild
    what: str
    why: str  # it is not needed
    size: int  # bytes
    remove: Callable[[], None]


def of_files(kind: str, what: str, why: str, files: Collection[Path]) -> Piece:
    """Return a piece that is these files and folders."""
    return Piece(kind, what, why, sum(map(freed, files)), lambda: remove(files))


def freed(path: Path) -> int:
    """Return the bytes that are free when a file or folder has gone: not those that are there by another name, too."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(freed, path.iterdir()))
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 else 0


def remove(paths: Collection[Path]) -> None:
    """Remove files, and folders in one step each, so that no half of one is taken for a whole. Raises OSError."""
    for path in paths:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        going = path if path.suffix == GOING else path.rename(path.with_name(path.name + GOING))
        shutil.rmtree(going)


def table(pieces: Sequence[Piece]) -> Iterator[str]:
    """Yield the lines of a list of pieces: the largest of each kind, what the others come to, and all in all."""
    rows = [("kind", "what", "why it is not needed", "size")]
    totals = []
    for kind in dict.fromkeys(piece.kind for piece in pieces):
        own = sorted((piece for piece in pieces if piece.kind == kind), key=lambda piece: -piece.size)
        rows += [(kind, one_line(piece.what), one_line(piece.why), shown(piece.size)) for piece in own[:MOST]]
        if others := own[MOST:]:
            rows.append((kind, f"and {len(others):,} more", "", _sum(others)))
        totals.append(f"{kind} {_sum(own)}")
    what, why, size = (max(len(row[column]) for row in rows) for column in (1, 2, 3))
    for row in rows:
        yield f"{row[0]:10}  {row[1]:{what}}  {row[2]:{why}}  {row[3]:>{size}}"
    yield f"in all {_sum(pieces)}: {', '.join(totals)}"


def shown(size: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of_unit:
            return f"{size / of_unit:.1f} {unit}"
    return f"{size} B"


def _sum(pieces: Sequence[Piece]) -> str:
    return shown(sum(piece.size for piece in pieces))

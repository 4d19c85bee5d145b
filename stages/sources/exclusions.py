"""Images that the user wants left out: a table names them."""

from collections import Counter
from collections.abc import Collection, Set
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.text import printable
from stages.sources.tables import records

COLUMN = "source"


def excluded(file: Path) -> set[str]:
    """Return what the column `source` of a table holds. Raises InputError if there is no such table."""
    found = records(file)
    _, _, header = next(found, (0, 0, list[str]()))
    columns = [name.strip() for name in header]
    if columns.count(COLUMN) != 1:
        its = listed(map(repr, columns), 50) or "none"
        raise InputError(f"prepare.exclude: {file}, should have one column {COLUMN!r}; its columns: {its}")
    place = columns.index(COLUMN)
    return {cells[place] for _, _, cells in found if len(cells) > place} - {""}


def left(sources: Collection[str], names: Set[str], file: Path) -> list[bool]:
    """Return of each image, by its source, whether it stays, since it is none of the names in the table `file`.

    Raises InputError for a name that is no image's, or that of several.
    """
    if not names:
        return [True] * len(sources)
    plain = [source.lstrip(" ").replace("\r", "\\r") for source in sources]  # as a table has it, and is read
    known = set(plain)
    # Tables of ours have an apostrophe before what a spreadsheet would take for a formula, see write_csv.
    names = {name if name in known else name.removeprefix("'") for name in names}
    stays = [source not in names for source in plain]
    counts = Counter(source for source, stay in zip(plain, stays, strict=True) if not stay)
    if unknown := sorted(names - counts.keys()):
        what = "image that is" if len(unknown) == 1 else "images that are"
        names_them = listed(map(printable, unknown))
        raise InputError(f"prepare.exclude: {file} names {len(unknown):,} {what} not there: {names_them}")
    if several := sorted(name for name, count in counts.items() if count > 1):
        raise InputError(
            f"prepare.exclude: {file} names what several rows are called, of which one may be meant:"
            f" {listed(map(printable, several))}"
        )
    return stays

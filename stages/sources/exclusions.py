"""Images that the user wants left out: a table names them."""

from pathlib import Path

import numpy as np

from stages.base.errors import InputError, listed
from stages.base.text import printable
from stages.sources.source import Source, only
from stages.sources.tables import records

COLUMN = "source"


def without(source: Source, file: Path) -> Source:
    """Return the source without the images that the column `source` of the table in `file` names.

    Raises InputError if the file is no such table, or names an image that is not there.
    """
    names = excluded(file)
    if not names:
        return source
    if unknown := sorted(names - set(source.rows["source"])):
        what = "image" if len(unknown) == 1 else "images"
        raise InputError(
            f"prepare.exclude: {file} names {len(unknown):,} {what} that {'is' if len(unknown) == 1 else 'are'} not"
            f" there: {listed(map(printable, unknown))}"
        )
    return only(source, np.flatnonzero(~source.rows["source"].isin(names)))


def excluded(file: Path) -> set[str]:
    """Return what the column `source` of a table holds. Raises InputError if there is no such table."""
    found = records(file)
    _, _, header = next(found, (0, 0, list[str]()))
    columns = [name.strip() for name in header]
    if columns.count(COLUMN) != 1:
        its = listed(map(repr, columns), 50) or "none"
        raise InputError(f"prepare.exclude: {file}, should have one column {COLUMN!r}; its columns: {its}")
    place = columns.index(COLUMN)
    # Tables of ours have an apostrophe before what a spreadsheet would take for a formula, see write_csv.
    return {cells[place].removeprefix("'") for _, _, cells in found if len(cells) > place} - {""}

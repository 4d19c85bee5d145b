"""The user's own images, as a CSV table lists them, as rows of a Source."""

import csv
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from stages.base.errors import InputError, listed
from stages.base.params import CsvParams, PrepareParams
from stages.sources.places import OUTSIDE_BY_LINK, check_folder, is_inside, mode
from stages.sources.rejections import Kind, Rejection
from stages.sources.source import Row
from stages.sources.splits import NAMES, known_splits

LINE_BREAK = re.compile(r"\r\n|\r|\n")
OPEN = "Is the quotation mark missing that ends it, or an earlier one?"


def from_csv(params: PrepareParams, root: Path) -> list[Row]:
    """Return the images of a table, in its order. Raises InputError for one that is not as prepare.csv says."""
    check_folder(root)
    if params.csv.folder is not None:
        check_folder(root / params.csv.folder, "prepare.csv.folder")
    file = _table_file(params.csv, root)
    found = list(_cells(params.csv, file, root))
    if not found:
        raise InputError(f"{file} has no rows below its header")
    splits = known_splits({split for *_, split in found}, f"prepare.csv.split: {file} has")
    home = os.path.realpath(root)
    inside: dict[str, bool] = {}  # whether a folder is in `home`, for those that were looked at
    rows: list[Row] = []
    for line, path, label, split in found:
        rejection = _path_problem(home, path, inside)
        if not rejection and params.csv.split is not None and split not in splits:
            rejection = Rejection(Kind.UNKNOWN_SPLIT, f"{split!r}; accepted: {', '.join(NAMES)}")
        rows.append((path or f"line {line}", label, splits.get(split, ""), rejection))
    return rows


def _table_file(params: CsvParams, root: Path) -> Path:
    """Return the path of the table. Raises InputError if it is no file in the folder `root`."""
    if "\0" in params.file:
        raise InputError(f"prepare.csv.file: {params.file!r}, should hold no NUL")
    file = root / params.file
    if not is_inside(os.path.realpath(file), os.path.realpath(root)):
        raise InputError(f"prepare.csv.file: {params.file!r} is outside of prepare.path, {root}")
    if not stat.S_ISREG(mode(file, "prepare.csv.file")):
        raise InputError(f"prepare.csv.file: {file} is no file")
    return file


def _cells(params: CsvParams, file: Path, root: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield the line that each row begins on, and what it has for path, label and split, in lower case.

    Raises as `from_csv` does.
    """
    found = records(file)
    _, _, header = next(found, (0, 0, list[str]()))
    columns = [name.strip() for name in header]
    image, label, split = (_place(params, key, columns, file) for key in ("image", "label", "split"))
    assert image is not None
    assert label is not None
    for first, last, cells in found:
        cells += [""] * (len(columns) - len(cells))
        if last > first:
            used = {place: columns[place] for place in (image, label, split) if place is not None}
            _check_line_breaks(params, cells, used, image, first, file, root)
        given = "" if split is None else cells[split].strip().lower()
        yield first, _path(params, cells[image]), cells[label].strip(), given


def records(file: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the lines that each row begins and ends on, and its cells; the first row is the header.

    Raises InputError for what is no table, and for a row of more cells than the header has.
    """
    line = header = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as content:
            reader = csv.reader(content, strict=True, skipinitialspace=True)
            try:
                for cells in reader:
                    if len(cells) > 1 or "".join(cells).strip():  # else a blank line
                        header = header or len(cells)
                        if len(cells) > header:
                            raise InputError(f"{file}, line {line + 1}: {len(cells)} cells, and {header} in the header")
                        yield line + 1, reader.line_num, cells
                    line = reader.line_num
            except csv.Error as error:
                where = f"line {line + 1}" + (f" to {reader.line_num}" if reader.line_num > line + 1 else "")
                raise InputError(f"{file}, {where}: no row of a table: {error}. {OPEN}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it as such") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error


def _place(params: CsvParams, key: str, columns: list[str], file: Path) -> int | None:
    """Return the number of the column that prepare.csv.`key` names, None if it is null. Raises InputError."""
    name = getattr(params, key)
    if name is None:
        return None
    if columns.count(name) != 1:
        count = "has no" if name not in columns else "has more than one"
        its = listed(map(repr, columns), 50) or "none"
        raise InputError(f"prepare.csv.{key}: {file} {count} column {name!r}; its columns: {its}")
    return columns.index(name)


def _check_line_breaks(
    params: CsvParams, cells: Sequence[str], used: dict[int, str], image: int, line: int, file: Path, root: Path
) -> None:
    """Raise InputError if a row of several lines, from `line` on, may be several rows that a quotation mark joins.

    So is one with a line break in a column that is `used`, {its number: its name}. In another column, such as a
    caption, the cell may not hold the path of an image at the place of the column `image`.
    """
    for place, cell in enumerate(cells):
        first, *others = LINE_BREAK.split(cell)
        if others and place in used:
            raise InputError(f"{file}, line {line}: a line break in a cell of column {used[place]!r}. {OPEN}")
        rests = [(first, image - place), *((other, image) for other in others)] if others else []
        for number, (text, at) in enumerate(rests, line):
            hidden = next(csv.reader([text], skipinitialspace=True), [])
            path = _path(params, hidden[at]) if 0 <= at < len(hidden) else ""
            if _is_file(root, path):
                raise InputError(f"{file}, line {number}: the image {path} is within a cell of several lines. {OPEN}")
        line += len(others)


def _path(params: CsvParams, cell: str) -> str:
    """Return the path that a cell gives, from the folder of the table on; "" for an empty one."""
    name = cell.strip()
    if not name:
        return ""
    return ("" if params.folder is None else f"{params.folder.rstrip('/')}/") + name + (params.suffix or "")


def _is_file(root: Path, path: str) -> bool:
    return bool(path) and "\0" not in path and os.path.isfile(root / path)  # noqa: PTH113, Path.is_file raises


def _path_problem(home: str, path: str, inside: dict[str, bool]) -> Rejection | None:
    """Return why a path of a table in the folder `home` cannot be used. `inside` is the cache of its folders."""
    if not path:
        return Rejection(Kind.NO_PATH)
    if "\0" in path:
        return Rejection(Kind.NOT_A_NAME, "it holds a NUL")
    pure = PurePosixPath(path)
    if pure.is_absolute():
        return Rejection(Kind.OUTSIDE, "an absolute path")
    if ".." in pure.parts:
        return Rejection(Kind.OUTSIDE, "by '..'")
    parent, file = str(pure.parent), f"{home}/{path}"
    if parent not in inside:
        inside[parent] = is_inside(os.path.realpath(f"{home}/{parent}"), home)
    is_link = os.path.islink(file)  # noqa: PTH114, since pathlib is slow for a million files
    if not inside[parent] or (is_link and not is_inside(os.path.realpath(file), home)):
        return OUTSIDE_BY_LINK
    if "\\" in path and not os.path.lexists(file):
        return Rejection(Kind.MISSING_FILE, "a path's folders are told apart by '/', not by '\\'")
    return None

"""How results are written: under a temporary name first, and always as the same bytes."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from stages.base.errors import InputError, listed
from stages.base.locks import check_owner, locked

if TYPE_CHECKING:
    from io import StringIO
    from typing import TextIO

    import pandas as pd

FLOAT_FORMAT = "%.6g"
SHARES = "%.6f"  # of a class's probability in a table
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
NO_PLACE |= {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EIO}
FORMULA, NUMBER = re.compile(r"[=+\-@'\x00-\x1f]"), re.compile(r"[+-]?\d+(\.\d*)?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which takes the place of `path` at the end, or is removed on any error.

    Raises InputError as `claimed` and `placing` do, which this is.
    """
    with claimed(path) as [partial], placing(path):
        yield partial


@contextmanager
def claimed(*outputs: Path, room: int = 0) -> Iterator[list[Path]]:
    """Yield a temporary name beside each output, which no other process writes meanwhile, and remove what is left.

    The names are fixed, so that what a killed process left behind is cleaned up by the next one. With `room`, all are
    files, and each gets this many bytes of the disk. Raises InputError if another process writes an output, and
    whenever there is no place for one: the disk is full or read-only, or a folder cannot be written to.
    """
    partials = [_partial(output) for output in outputs]
    with locked(*outputs):
        try:
            for output, partial in zip(outputs, partials, strict=True):
                output.parent.mkdir(parents=True, exist_ok=True)
                _remove(partial)
                if room:
                    if output.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))
                    reserve(partial, room)
            yield partials
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise
            where = f": {error.filename}" if error.filename else ""
            raise InputError(f"{listed(outputs)} cannot be written: {error.strerror}{where}") from error
        finally:
            for partial in partials:
                with suppress(OSError):  # a disk can become read-only
                    _remove(partial)


@contextmanager
def placing(*outputs: Path) -> Iterator[None]:
    """Let what was written under the temporary names of claimed outputs take their places at the end.

    Raises InputError, and leaves all as it was, if this process is not the one to write them any more.
    """
    yield
    for output in outputs:
        check_owner(output)
    for output in outputs:
        if (partial := _partial(output)).is_dir():
            _remove(output)  # a file is replaced in one step, a directory cannot be
        partial.replace(output)


def reserve(file: Path, n_bytes: int) -> None:
    """Give a file this many bytes of the disk, zeros where it has none yet. Raises OSError if there are not so many.

    A file can be longer than what it has of the disk: a process that writes to its memory map would be killed.
    """
    with file.open("ab") as opened:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, n_bytes)
            elif n_bytes > shutil.disk_usage(file).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, {n_bytes:,} bytes are needed") from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rounded(value: float) -> float:
    """Return `value` as it stands in text outputs: six significant digits."""
    return float(FLOAT_FORMAT % value)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: a power cut leaves the old one or the new. Raises OSError."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def copy_synced(file: Path, target: Path) -> None:
    """Copy a file as `write_synced` writes one, which others may be doing at the same time, on other machines, too."""
    partial = target.with_name(f".{uuid4().hex}.partial")
    try:
        shutil.copyfile(file, partial)
        sync(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def sync(file: Path) -> None:
    """Have a file's content on the disk, so that a power cut leaves it. Raises OSError."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with sorted keys; its floats should have passed `rounded`. NaN is refused (ValueError)."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_csv(
    file: "Path | TextIO", table: "pd.DataFrame", float_format: str = FLOAT_FORMAT, header: bool = True
) -> None:
    """Write `table` without its index, lines ending in \\n on every platform.

    A spreadsheet takes a text that begins with = + - @ or a control character for a formula. Such a text, unless it is
    a number, gets an apostrophe before it, and so does one that begins with an apostrophe: `read_csv` takes one off.
    """
    safe = _with_texts(table, lambda text: f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text)
    safe.to_csv(file, index=False, header=header, float_format=float_format, lineterminator="\n")


def write_parquet(file: Path, table: "pd.DataFrame", kinds: dict[str, str]) -> None:
    """Write `table`, of columns of these kinds of pyarrow, without its index; the bytes follow from it and pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])
    content = pa.Table.from_pandas(table, schema, preserve_index=False).replace_schema_metadata(None)
    parquet.write_table(content, file, compression="NONE", version="2.6", row_group_size=1 << 20)


def read_csv(file: "Path | StringIO", **options: Any) -> "pd.DataFrame":
    """Return the table that `write_csv` wrote, read with these options of pandas."""
    import pandas as pd

    return _with_texts(pd.read_csv(file, **options), lambda text: text.removeprefix("'"))


def _with_texts(table: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """Return the table with every text changed, those of its header, too."""
    changed = table.set_axis([change(str(name)) for name in table.columns], axis="columns")
    for place, kind in enumerate(table.dtypes):  # by their places: two columns may have one name
        if kind.kind not in "biuf":
            values = table.iloc[:, place]
            changed.isetitem(place, [change(value) if isinstance(value, str) else value for value in values])
    return changed


def sha256(*paths: Path) -> str:
    """Return the hex digest of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

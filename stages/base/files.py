"""How results are written: under a temporary name first, and always as the same bytes."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import StringIO

    import pandas as pd

FLOAT_FORMAT = "%.6g"
FORMULA, NUMBER = re.compile(r"[=+\-@'\x00-\x1f]"), re.compile(r"[+-]?\d+(\.\d*)?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which takes the place of `path` at the end, or is removed on any error.

    The temporary name is fixed, so that what a killed process left behind is cleaned up by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _remove(path)  # a file is replaced in one step, a directory cannot be
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rounded(value: float) -> float:
    """Return `value` as it stands in text outputs: six significant digits."""
    return float(FLOAT_FORMAT % value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with sorted keys; its floats should have passed `rounded`. NaN is refused (ValueError)."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_csv(path: Path, table: "pd.DataFrame", float_format: str = FLOAT_FORMAT) -> None:
    """Write `table` without its index, lines ending in \\n on every platform.

    A spreadsheet takes a text that begins with = + - @ or a control character for a formula. Such a text, unless it is
    a number, gets an apostrophe before it, and so does one that begins with an apostrophe: `read_csv` takes one off.
    """
    safe = _with_texts(table, lambda text: f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text)
    safe.to_csv(path, index=False, float_format=float_format, lineterminator="\n")


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

"""Where images come from: `load_source` finds the source that params.yaml names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.base.errors import InputError, lines, unknown
from stages.base.params import NOTHING, PrepareParams
from stages.base.registry import check_table
from stages.sources import folders, published, tables
from stages.sources.exclusions import excluded, left
from stages.sources.rejections import Kind, Rejection
from stages.sources.source import Row, Source, only, table

PUBLISHED: dict[str, Callable[[Path], Source]] = {"digits": published.digits, "fashion_mnist": published.fashion_mnist}
USER_SOURCES: dict[str, Callable[[PrepareParams, Path], list[Row]]] = {
    "folder": folders.from_folder,
    "csv": tables.from_csv,
}
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def load_source(params: PrepareParams) -> Source:
    """Return the source that `prepare.source` names, of what the user brought to `prepare.path`.

    What `prepare.exclude` names is left out first, as if it were not there.
    Raises InputError for a set that cannot be used as a whole. Images that cannot be used are in its `rejections`.
    """
    check_name(params.source)
    classes, raw, exclude = params.classes, Path(params.path), Path(params.exclude)
    names = excluded(exclude)
    if classes is not None and (len(set(classes)) < len(classes) or len(classes) < 2):
        raise InputError(f"prepare.classes: {classes}, should be two or more different names")
    if params.source not in PUBLISHED:
        if raw == NOTHING:
            raise InputError(
                f"prepare.path: '{NOTHING}', should be the folder of your images for prepare.source: {params.source}"
            )
        rows = USER_SOURCES[params.source](params, raw)
        stays = left([row[0] for row in rows], names, exclude)
        try:
            found = _user_source([row for row, stay in zip(rows, stays, strict=True) if stay], classes, raw)
        except InputError as error:
            if not names:
                raise
            raise InputError(f"{error}\nprepare.exclude leaves {len(names):,} images out") from error
        return replace(found, n_excluded=len(names))
    source = PUBLISHED[params.source](raw)
    if classes not in (None, source.classes):
        raise InputError(
            f"prepare.classes: {classes}, should be null for {params.source}, whose own are {source.classes}"
        )
    if not names:
        return source
    return replace(only(source, np.flatnonzero(left(source.rows["source"], names, exclude))), n_excluded=len(names))


def check_name(name: str) -> None:
    """Raise InputError unless there is a source of this name, made by a function."""
    check_table("the sources in stages/sources/loading.py", {**PUBLISHED, **USER_SOURCES}, by_name=False)
    if name not in PUBLISHED and name not in USER_SOURCES:
        raise InputError(f"prepare.source: {name!r} is unknown{unknown(name, [*PUBLISHED, *USER_SOURCES])}")


def _user_source(found: list[Row], accepted: list[str] | None, raw: Path) -> Source:
    """Return the source with the rows found, in which images without a label or with an unknown one are rejected."""
    rows, rejections = table(found)
    if rows.empty:
        raise InputError(f"prepare.path: {str(raw)!r} has no images")
    if (splits := set(rows["split"]) - {""}) and "train" not in splits:
        raise InputError(f"{raw} has no images for train, only for {', '.join(sorted(splits))}")
    # No CSV file keeps a carriage return, so it is shown escaped.
    for column, kind in (("source", Kind.NOT_A_NAME), ("label", Kind.NOT_A_LABEL)):
        for row in np.flatnonzero(rows[column].str.contains("\r", regex=False)).tolist():
            rejections.setdefault(row, Rejection(kind, "it holds a carriage return"))
        rows[column] = rows[column].str.replace("\r", "\\r", regex=False)
    classes = accepted or in_order(set(rows["label"]) - {""})
    if len(classes) < 2:
        names = f"class, {classes[0]!r}" if classes else "classes"
        raise InputError(f"{raw} has images of {len(classes)} {names}; two are needed")
    if accepted is None:
        _check_unlike(classes, raw)
    known = set(classes)
    for row, label in enumerate(rows["label"]):
        if not label:
            rejections.setdefault(row, Rejection(Kind.NO_LABEL))
        elif label not in known:
            rejections.setdefault(row, Rejection(Kind.UNKNOWN_LABEL, f"{label}, which is not in prepare.classes"))
    return Source(rows, rejections, classes, None)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of classes, sorted: as numbers if all of them are some, else as text."""
    names = sorted(names)
    return sorted(names, key=float) if all(map(NUMBER.fullmatch, names)) else names


def _check_unlike(classes: list[str], raw: Path) -> None:
    """Raise InputError for names of classes that look alike: who wrote them may have meant one class."""
    alike = defaultdict(list)
    for name in classes:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        alike[" ".join(folded.split())].append(name)
    if groups := [", ".join(map(_distinct, names)) for names in alike.values() if len(names) > 1]:
        raise InputError(
            f"{raw} has classes whose names differ only in case, spaces or Unicode form:\n"
            + "\n".join(lines(groups))
            + "\nMerge them, or list them in prepare.classes if they are meant."
        )


def _distinct(name: str) -> str:
    # A composed and a decomposed letter look the same unless one is written in ASCII.
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)

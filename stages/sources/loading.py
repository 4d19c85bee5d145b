"""Where images come from: `load_source` finds the source that params.yaml names."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from stages.base.errors import InputError
from stages.base.params import CsvParams, PrepareParams
from stages.sources import folders, published
from stages.sources.source import Source


def load_source(params: PrepareParams, raw: Path) -> Source:
    """Return the source that `prepare.source` names; `raw` is the folder with what the user brought.

    Raises InputError for what cannot be read as a whole. What is wrong with single images stands in their rows.
    """
    listed = params.classes
    if listed is not None and (len(set(listed)) < len(listed) or len(listed) < 2):
        raise InputError(f"prepare.classes: {listed}, should be two or more different names")
    if params.source in BUILT_IN:
        source = BUILT_IN[params.source](raw)
        if listed not in (None, source.classes):
            raise InputError(
                f"prepare.classes: {listed}, should be null for {params.source}, whose own are {source.classes}"
            )
        return source

    rows = BROUGHT[params.source](params.csv, raw)
    if rows.empty:
        raise InputError(f"prepare.path: {str(raw)!r} has no images")
    if (given := set(rows["split"]) - {""}) and "train" not in given:
        raise InputError(f"{raw} has no images for train, only for {', '.join(sorted(given))}")
    _refuse_returns(rows)
    usable = rows["reason"] == ""
    rows.loc[usable & (rows["label"] == ""), "reason"] = "no label"
    classes = listed or sorted(set(rows["label"]) - {""})
    if len(classes) < 2:
        raise InputError(
            f"{raw} has images of {len(classes)} class{'es' if not classes else f', {classes[0]!r}'}; two are needed"
        )
    if listed is None:
        _check_unlike(classes, raw)
    strange = (rows["reason"] == "") & ~rows["label"].isin(classes)
    rows.loc[strange, "reason"] = "unknown label: " + rows.loc[strange, "label"] + ", which is not in prepare.classes"
    return Source(rows, classes, None)


def _refuse_returns(rows: pd.DataFrame) -> None:
    """Give a reason to images with a carriage return in path or label, which no CSV file keeps, and show it escaped."""
    for column, kind in (("source", "name"), ("label", "label")):
        holds = rows[column].str.contains("\r", regex=False)
        rows.loc[holds & (rows["reason"] == ""), "reason"] = f"not a {kind}: it holds a carriage return"
        rows.loc[holds, column] = rows.loc[holds, column].str.replace("\r", "\\r", regex=False)


def _check_unlike(classes: list[str], raw: Path) -> None:
    """Raise InputError for names of classes that look alike: who wrote them may have meant one class."""
    alike = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())].append(
            name
        )
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        # A composed and a decomposed letter look the same, unless one is written in ASCII.
        lines = ["  " + ", ".join(map(_told_apart, names)) for names in groups[:20]]
        raise InputError(
            f"{raw} has classes whose names differ only in case, spaces or Unicode form:\n"
            + "\n".join([*lines, *([f"  and {len(groups) - 20:,} more"] if len(groups) > 20 else [])])
            + "\nMerge them, or list them in prepare.classes if they are meant."
        )


def _told_apart(name: str) -> str:
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


BUILT_IN: dict[str, Callable[[Path], Source]] = {"digits": published.digits, "fashion_mnist": published.fashion_mnist}
BROUGHT: dict[str, Callable[[CsvParams, Path], pd.DataFrame]] = {
    "folder": folders.from_folder,
    "csv": folders.from_csv,
}

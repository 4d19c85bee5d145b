"""The user's own images: the files of a folder, or of a table, as rows of text.

Either function returns a table of one row an image, all text:

    source   path of the image's file, from the folder on
    label    its class, "" where it has none
    split    train, valid or test, "" where the set is not split yet
    reason   "" or why it cannot be used: the kind, and after a colon what is to be said of this one
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
from pandas.errors import EmptyDataError, ParserError

from stages.base.errors import InputError
from stages.base.params import CsvParams

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
LITTER = ("thumbs.db", ".ds_store", "desktop.ini")  # what file managers leave in folders, beside hidden files
# What Repronet itself, DVC and macOS put beside the folders of classes.
BESIDE_FILES = re.compile(r"readme\.md|.*\.dvc", re.IGNORECASE | re.DOTALL)
BESIDE_FOLDER = "__MACOSX"
OUTSIDE = "outside the folder"


def from_folder(_knobs: CsvParams, root: Path) -> pd.DataFrame:
    """Return the images of a folder with one folder a class, or with those in train/, valid/ and test/.

    A class has the images in it at any depth. Raises InputError for a layout that can be read in two ways.
    """
    _check_folder(root)
    tops = sorted(
        entry.name
        for entry in _entries(root)
        if entry.is_dir(follow_symlinks=False) and not _is_litter(entry, top=True)
    )
    is_split = any(name.lower() in SPLITS for name in tops)
    if is_split and (others := [name for name in tops if name.lower() not in SPLITS]):
        raise InputError(
            f"{root} has folders of splits, {_some(sorted(set(tops) - set(others)))}, beside others, {_some(others)}."
            " Have one folder a class, or put all of them into train/, and valid/ and test/ if you like."
        )
    rows = []
    for path, reason in _files(root):
        *folders, name = path.split("/")
        split = SPLITS.get(folders.pop(0).lower(), "") if is_split and folders else ""
        label = folders[0] if folders else ""
        if not reason and not label:
            reason = "no label: it is in no class's folder"
        rows.append((name, path, label, split, reason))
    # Not by class or split: a set that was written out with numbered names keeps its order, wherever its files are put.
    rows.sort()
    return pd.DataFrame([row[1:] for row in rows], columns=["source", "label", "split", "reason"], dtype=object)


def from_csv(params: CsvParams, root: Path) -> pd.DataFrame:
    """Return the images of a table, in its order. Raises InputError for one that is not as prepare.csv says."""
    _check_folder(root)
    if "\0" in params.file:
        raise InputError(f"prepare.csv.file: {params.file!r}, should hold no NUL")
    file = root / params.file
    if not _is_inside(os.path.realpath(file), os.path.realpath(root)):
        raise InputError(f"prepare.csv.file: {params.file!r} is outside of prepare.path, {root}")
    if not stat.S_ISREG(_mode(file, "prepare.csv.file")):
        raise InputError(f"prepare.csv.file: {file} is no file")
    table = _table(file)
    wanted = {"image": params.image, "label": params.label} | (
        {"split": params.split} if params.split is not None else {}
    )
    columns = table.columns.tolist()
    for key, name in wanted.items():
        if columns.count(name) != 1:
            count = "has no" if name not in columns else "has more than one"
            raise InputError(f"prepare.csv.{key}: {file} {count} column {name!r}; its columns: {_some(columns, 50)}")
    if table.empty:
        raise InputError(f"{file} has no rows below its header")

    paths, labels = table[params.image].str.strip(), table[params.label].str.strip()
    splits = [""] * len(table) if params.split is None else table[params.split].str.strip().str.lower()
    home = os.path.realpath(root)
    inside: dict[str, bool] = {}  # of the folders that were looked at
    rows = []
    for number, (path, label, given) in enumerate(zip(paths, labels, splits, strict=True), 1):
        reason = _path_problem(home, path, inside)
        split = SPLITS.get(given, "")
        if not reason and params.split is not None and not split:
            reason = f"unknown split: {given!r}; accepted: {', '.join(SPLITS)}"
        rows.append((path or f"row {number}", label, split, reason))
    return pd.DataFrame(rows, columns=["source", "label", "split", "reason"], dtype=object)


def _check_folder(root: Path) -> None:
    if not stat.S_ISDIR(_mode(root, "prepare.path")):
        raise InputError(f"prepare.path: {str(root)!r} is no folder")


def _mode(path: Path, knob: str) -> int:
    """Return the mode of what is at `path`, 0 for nothing. Raises InputError where that cannot be told."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise InputError(f"{knob}: {str(path)!r}: {error.strerror}") from error


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    """Return what is in a folder. Raises InputError where it cannot be read."""
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each file's path from `root` on, and why it cannot be used, or ""."""
    home, todo = os.path.realpath(root), [""]
    while todo:
        prefix = todo.pop()
        for entry in _entries(root / prefix):
            path = prefix + entry.name
            if _is_litter(entry, top=not prefix):
                continue
            if (name := path.encode(errors="backslashreplace").decode()) != path:
                yield name, "not a name: it is not UTF-8"
            elif entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), home):
                yield path, f"{OUTSIDE}: a link that leads out of it"
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112, which is False for circular links
                yield path, "not a file: a link to a folder, which is not followed"
            elif entry.is_dir(follow_symlinks=False):
                todo.append(path + "/")
            else:
                yield path, ""


def _is_litter(entry: "os.DirEntry[str]", top: bool) -> bool:
    name = entry.name.lower()
    if name.startswith(".") or name in LITTER:
        return True
    if not top:
        return False
    if entry.is_dir(follow_symlinks=False):
        return entry.name == BESIDE_FOLDER
    return BESIDE_FILES.fullmatch(name) is not None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _table(file: Path) -> pd.DataFrame:
    """Return the file's table of text, with the columns as its first line names them."""
    try:
        # Without a header, since pandas would give columns of the same name other ones.
        table = pd.read_csv(
            file,
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            skipinitialspace=True,
            compression=None,  # whatever its name ends in
        )
    except (EmptyDataError, ParserError) as error:
        raise InputError(f"{file} is no table: {str(error).strip()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it as such") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    return table[1:].set_axis(table.iloc[0].str.strip().tolist(), axis="columns")


def _path_problem(home: str, path: str, inside: dict[str, bool]) -> str:
    """Return why a path of a table in the folder `home` cannot be used, or ""."""
    if not path:
        return "no path"
    if "\0" in path:
        return "not a name: it holds a NUL"
    pure = PurePosixPath(path)
    if pure.is_absolute():
        return f"{OUTSIDE}: an absolute path"
    if ".." in pure.parts:
        return f"{OUTSIDE}: by '..'"
    parent, file = str(pure.parent), f"{home}/{path}"
    if parent not in inside:
        inside[parent] = _is_inside(os.path.realpath(f"{home}/{parent}"), home)
    is_link = os.path.islink(file)  # noqa: PTH114, of a million files
    if not inside[parent] or (is_link and not _is_inside(os.path.realpath(file), home)):
        return f"{OUTSIDE}: a link that leads out of it"
    if "\\" in path and not os.path.lexists(file):
        return "missing file: a path's folders are told apart by '/', not by '\\'"
    return ""


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")

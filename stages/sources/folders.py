"""The user's own images: the files of a folder, or of a table, as rows of a Source."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
from pandas.errors import EmptyDataError, ParserError

from stages.base.errors import InputError, listed
from stages.base.params import CsvParams
from stages.sources.rejections import Kind, Rejection
from stages.sources.source import Row

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
# What file managers leave in folders, beside hidden files; in lower case.
IGNORED = ("thumbs.db", ".ds_store", "desktop.ini")
# What Repronet itself, DVC and macOS put beside the folders of classes.
IGNORED_AT_TOP = re.compile(r"readme\.md|.*\.dvc", re.IGNORECASE | re.DOTALL)
IGNORED_FOLDER_AT_TOP = "__MACOSX"
OUTSIDE_BY_LINK = Rejection(Kind.OUTSIDE, "a link that leads out of it")


def from_folder(_params: CsvParams, root: Path) -> list[Row]:
    """Return the images of a folder that has one folder a class, or train/, valid/ and test/ with such folders.

    A class has all images in its folder, at any depth. Raises InputError for a folder that cannot be read, or whose
    layout can be understood in two ways.
    """
    _check_folder(root)
    tops = sorted(
        entry.name
        for entry in _entries(root)
        if entry.is_dir(follow_symlinks=False) and not _is_ignored(entry, at_top=True)
    )
    splits = [name for name in tops if name.lower() in SPLITS]
    others = [name for name in tops if name.lower() not in SPLITS]
    if splits and others:
        raise InputError(
            f"{root} has folders of splits, {_quoted(splits)}, beside others, {_quoted(others)}."
            " Have one folder a class, or put all of them into train/, and valid/ and test/ if you like."
        )
    rows: list[Row] = []
    for path, rejection in _files(root):
        folders = path.split("/")[:-1]
        split = SPLITS.get(folders.pop(0).lower(), "") if splits and folders else ""
        label = folders[0] if folders else ""
        if not rejection and not label:
            rejection = Rejection(Kind.NO_LABEL, "it is in no class's folder")
        rows.append((path, label, split, rejection))
    # By name, not by class or split: a set that was written out with numbered names keeps its order, whatever folders
    # its files are in.
    rows.sort(key=lambda row: (row[0].rpartition("/")[2], row[0], row[3] is not None))
    return rows


def from_csv(params: CsvParams, root: Path) -> list[Row]:
    """Return the images of a table, in its order. Raises InputError for one that is not as prepare.csv says."""
    _check_folder(root)
    file = _table_file(params, root)
    content = _read_table(file)
    columns = content.columns.tolist()
    for key in ("image", "label", "split"):
        name = getattr(params, key)
        if name is not None and columns.count(name) != 1:
            count = "has no" if name not in columns else "has more than one"
            raise InputError(f"prepare.csv.{key}: {file} {count} column {name!r}; its columns: {_quoted(columns, 50)}")
    if content.empty:
        raise InputError(f"{file} has no rows below its header")

    paths, labels = content[params.image].str.strip(), content[params.label].str.strip()
    splits = [""] * len(content) if params.split is None else content[params.split].str.strip().str.lower()
    home = os.path.realpath(root)
    inside: dict[str, bool] = {}  # whether a folder is in `home`, for those that were looked at
    rows: list[Row] = []
    for number, (path, label, given) in enumerate(zip(paths, labels, splits, strict=True), 1):
        rejection = _path_problem(home, path, inside)
        split = SPLITS.get(given, "")
        if not rejection and params.split is not None and not split:
            rejection = Rejection(Kind.UNKNOWN_SPLIT, f"{given!r}; accepted: {', '.join(SPLITS)}")
        rows.append((path or f"row {number}", label, split, rejection))
    return rows


def _table_file(params: CsvParams, root: Path) -> Path:
    """Return the path of the table. Raises InputError if it is no file in the folder `root`."""
    if "\0" in params.file:
        raise InputError(f"prepare.csv.file: {params.file!r}, should hold no NUL")
    file = root / params.file
    if not _is_inside(os.path.realpath(file), os.path.realpath(root)):
        raise InputError(f"prepare.csv.file: {params.file!r} is outside of prepare.path, {root}")
    if not stat.S_ISREG(_mode(file, "prepare.csv.file")):
        raise InputError(f"prepare.csv.file: {file} is no file")
    return file


def _check_folder(root: Path) -> None:
    if not stat.S_ISDIR(_mode(root, "prepare.path")):
        raise InputError(f"prepare.path: {str(root)!r} is no folder")


def _mode(path: Path, param: str) -> int:
    """Return the mode of the file or folder at `path`, 0 if there is none. Raises InputError if it cannot be read."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise InputError(f"{param}: {str(path)!r}: {error.strerror}") from error


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    """Return what is in a folder. Raises InputError if it cannot be read."""
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error


def _files(root: Path) -> Iterator[tuple[str, Rejection | None]]:
    """Yield each file's path from `root` on, and why it cannot be used."""
    home, todo = os.path.realpath(root), [""]
    while todo:
        prefix = todo.pop()
        for entry in _entries(root / prefix):
            path = prefix + entry.name
            if _is_ignored(entry, at_top=not prefix):
                continue
            if (name := path.encode(errors="backslashreplace").decode()) != path:
                yield name, Rejection(Kind.NOT_A_NAME, "it is not UTF-8")
            elif entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), home):
                yield path, OUTSIDE_BY_LINK
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112, which is False for circular links
                yield path, Rejection(Kind.NOT_A_FILE, "a link to a folder, which is not followed")
            elif entry.is_dir(follow_symlinks=False):
                todo.append(path + "/")
            else:
                yield path, None


def _is_ignored(entry: "os.DirEntry[str]", at_top: bool) -> bool:
    name = entry.name.lower()
    if name.startswith(".") or name in IGNORED:
        return True
    if not at_top:
        return False
    if entry.is_dir(follow_symlinks=False):
        return entry.name == IGNORED_FOLDER_AT_TOP
    return IGNORED_AT_TOP.fullmatch(name) is not None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _read_table(file: Path) -> pd.DataFrame:
    """Return the file's table of text, with the columns as its first line names them."""
    try:
        # Without a header, since pandas would rename columns that have the same name.
        content = pd.read_csv(
            file,
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            skipinitialspace=True,
            compression=None,  # by default a name that ends in .zip would have it decompressed
        )
    except (EmptyDataError, ParserError) as error:
        raise InputError(f"{file} is no table: {str(error).strip()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it as such") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    return content[1:].set_axis(content.iloc[0].str.strip().tolist(), axis="columns")


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
        inside[parent] = _is_inside(os.path.realpath(f"{home}/{parent}"), home)
    is_link = os.path.islink(file)  # noqa: PTH114, since pathlib is slow for a million files
    if not inside[parent] or (is_link and not _is_inside(os.path.realpath(file), home)):
        return OUTSIDE_BY_LINK
    if "\\" in path and not os.path.lexists(file):
        return Rejection(Kind.MISSING_FILE, "a path's folders are told apart by '/', not by '\\'")
    return None


def _quoted(names: list[str], most: int = 5) -> str:
    return listed(map(repr, names), most)

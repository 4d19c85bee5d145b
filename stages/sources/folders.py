"""The user's own images, the files of a folder, as rows of a Source."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.params import PrepareParams
from stages.base.text import utf8
from stages.sources.places import OUTSIDE_BY_LINK, check_folder, is_inside
from stages.sources.rejections import Kind, Rejection
from stages.sources.source import Row
from stages.sources.splits import NAMES, known_splits

# What file managers leave in folders, beside hidden files; in lower case.
IGNORED = ("thumbs.db", ".ds_store", "desktop.ini")
# What Repronet itself, DVC and macOS put beside the folders of classes.
IGNORED_AT_TOP = re.compile(r"readme\.md|.*\.dvc", re.IGNORECASE | re.DOTALL)
IGNORED_FOLDER_AT_TOP = "__MACOSX"


def from_folder(params: PrepareParams, root: Path) -> list[Row]:
    """Return the images of a folder that has one folder a class, or train/, valid/ and test/ with such folders.

    A class has all images in its folder, at any depth. Raises InputError for a folder that cannot be read, or whose
    layout can be understood in two ways.
    """
    check_folder(root)
    tops = sorted(
        entry.name
        for entry in _entries(root)
        if entry.is_dir(follow_symlinks=False) and not _is_ignored(entry, at_top=True)
    )
    splits = known_splits(tops, f"{root} has folders")
    if splits and (others := [name for name in tops if name not in splits]):
        raise InputError(
            f"{root} has folders of splits, {_quoted(splits)}, beside others, {_quoted(others)}."
            " Have one folder a class, or put all of them into train/, and valid/ and test/ if you like."
        )
    rows: list[Row] = []
    within: defaultdict[str, set[str]] = defaultdict(set)  # the folders in those of each class
    for path, rejection in files_in(root):
        folders = path.split("/")[:-1]
        split = splits[folders.pop(0)] if splits and folders else ""
        label = folders[0] if folders else ""
        within[label] |= set(folders[1:2])
        if not rejection and not label:
            rejection = Rejection(Kind.NO_LABEL, "it is in no class's folder")
        rows.append((path, label, split, rejection))
    if params.classes is None:  # else these are the classes, and nothing is open
        _check_meaning(root, {label: folders for label, folders in within.items() if label})
    # By name, not by class or split: a set that was written out with numbered names keeps its order, whatever folders
    # its files are in.
    rows.sort(key=lambda row: (row[0].rpartition("/")[2], row[0], row[3] is not None))
    return rows


def _check_meaning(root: Path, within: dict[str, set[str]]) -> None:
    """Raise InputError if what would be the classes, the keys, may as well be splits, or classes in other folders."""
    names = {name for folders in within.values() for name in folders}
    shared = set.intersection(*within.values()) if len(within) > 1 else set[str]()
    if split := sorted(name for name in names if name.lower() in NAMES):
        what = f"folders of splits, {_quoted(split)}, in those of classes, {_quoted(sorted(within))}"
    elif len(shared) > 1:
        what = f"folders of the same names, {_quoted(sorted(shared))}, in each of {_quoted(sorted(within))}"
    else:
        return
    raise InputError(
        f"{root} has {what}, which can be understood in two ways. If the outer ones are the classes, list them in"
        " prepare.classes. If they are splits, name them train, valid and test; in these are the folders of classes."
    )


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    """Return what is in a folder, by name. Raises InputError if it cannot be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error


def files_in(root: Path) -> Iterator[tuple[str, Rejection | None]]:
    """Yield each file's path from `root` on, and why it cannot be used."""
    home, todo = os.path.realpath(root), [""]
    while todo:
        prefix = todo.pop()
        for entry in _entries(root / prefix):
            path = prefix + entry.name
            if _is_ignored(entry, at_top=not prefix):
                continue
            if (name := utf8(path)) != path:
                yield name, Rejection(Kind.NOT_A_NAME, "it is not UTF-8")
            elif entry.is_symlink() and not is_inside(os.path.realpath(entry.path), home):
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


def _quoted(names: "Iterator[str] | list[str] | dict[str, str]") -> str:
    return listed(map(repr, names), 5)

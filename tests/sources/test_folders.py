"""The user's own images, found in folders."""

from pathlib import Path
from typing import Any

import pytest

from stages.base.errors import InputError
from stages.sources import folders
from stages.sources.loading import load_source
from tests.conftest import write_image
from tests.test_prepare import prepare_params


def names(root: Path, **changes: Any) -> list[tuple[str, str, str]]:
    source = load_source(prepare_params("folder", root, **changes))
    assert not source.rejections
    return list(source.rows[["source", "label", "split"]].itertuples(index=False, name=None))


def test_one_folder_a_class(tmp_path: Path) -> None:
    for name in ("cat/b.png", "dog/a.png", "cat/deep/er/c.jpg", "dog/.hidden.png", ".git/x.png"):
        write_image(tmp_path / name, 0)
    (tmp_path / "cat/Thumbs.db").touch()
    # In the order of their names, not of their folders.
    assert names(tmp_path) == [("dog/a.png", "dog", ""), ("cat/b.png", "cat", ""), ("cat/deep/er/c.jpg", "cat", "")]


def test_what_lies_beside_the_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "__MACOSX/cat/._1.png", "cat.dvc/3.png"):
        write_image(tmp_path / name, 0)
    for name in ("ReadMe.md", "cat.dvc.dvc", "dog.dvc", ".gitignore"):
        (tmp_path / name).touch()
    assert [path for path, _, _ in names(tmp_path)] == ["cat/1.png", "dog/2.png", "cat.dvc/3.png"]
    (tmp_path / "cat/README.md").touch()  # that may be an image of the class by mistake
    assert len(names(tmp_path)) == 4


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    long = tmp_path / ("x" * 300)
    with pytest.raises(InputError, match=r"^prepare\.path: '.*xxx': File name too long$"):
        load_source(prepare_params("folder", long))
    with pytest.raises(InputError, match=r"^prepare\.csv\.file: '.*xxx': File name too long$"):
        load_source(prepare_params("csv", tmp_path, csv__file=long.name))
    for folder, reason in ((tmp_path / "file", "Not a directory"), (long, "File name too long")):
        with pytest.raises(InputError, match=f"{folder}: {reason}$"):
            folders._entries(folder)


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "val", "Testing"),
        ("TRAIN", "validation", "eval"),
        ("training", "Valid", "testing"),
        ("train", "dev", "Eval"),
    ],
)
def test_folders_of_splits(tmp_path: Path, train: str, valid: str, test: str) -> None:
    for split, digits in ((train, "036"), (valid, "1"), (test, "24")):
        for digit in digits:
            write_image(tmp_path / split / "ab"[int(digit) % 2] / f"{digit}.png", int(digit))
    assert names(tmp_path) == [
        (f"{train}/a/0.png", "a", "train"),
        (f"{valid}/b/1.png", "b", "valid"),
        (f"{test}/a/2.png", "a", "test"),
        (f"{train}/b/3.png", "b", "train"),
        (f"{test}/a/4.png", "a", "test"),
        (f"{train}/a/6.png", "a", "train"),
    ]


def test_folders_in_those_of_classes(tmp_path: Path) -> None:
    """They may have any names, unless these could be meant for classes; prepare.classes says what is meant."""
    for name in ("cat/day/1.png", "cat/night/2.png", "dog/day/3.png"):
        write_image(tmp_path / name, 0)
    assert [label for _, label, _ in names(tmp_path)] == ["cat", "cat", "dog"]
    for name in ("dog/night/4.png", "dog/test/5.png"):
        write_image(tmp_path / name, 0)
        with pytest.raises(InputError, match="can be understood in two ways"):
            names(tmp_path)
    assert [label for _, label, _ in names(tmp_path, classes=["cat", "dog"])] == ["cat", "cat", "dog", "dog", "dog"]


def test_links_that_stay_inside(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / name / "1.png", ord(name))
        (tmp_path / name / "2.png").symlink_to("1.png")
    (tmp_path / "again").symlink_to(".")
    source = load_source(prepare_params("folder", tmp_path))
    assert source.rows["source"][source.usable].tolist() == ["a/1.png", "b/1.png", "a/2.png", "b/2.png"]
    # That one would go round in circles.
    reasons = [str(rejection) for rejection in source.rejections.values()]
    assert reasons == ["not a file: a link to a folder, which is not followed"]

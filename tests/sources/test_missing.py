"""Names in a table that are nearly those of files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.base.errors import InputError
from stages.prepare import prepare
from tests.conftest import write_image
from tests.test_prepare import prepare_params


def said(tmp_path: Path, file: str, name: str, **changes: Any) -> str:
    """Prepare 40 images with files and names like these, # being a number; return what follows the list of them."""
    root = tmp_path / "set"
    for i in range(40):
        write_image(root / file.replace("#", str(i)), i, format="PNG")
    rows = [f"{name.replace('#', str(i))},{'ab'[i % 2]}\n" for i in range(40)]
    (root / "labels.csv").write_text("".join(["image,label\n", *rows]))
    with pytest.raises(InputError, match=r"^40 of 40 images") as raised:
        prepare(prepare_params("csv", root, **changes), tmp_path / "prepared")
    text = str(raised.value)
    return text[text.index("and 20 more\n") + len("and 20 more\n") : text.index("\nAll of them are listed")]


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("x/#.png", "x/#", r"with prepare\.csv\.suffix=\.png, such as x/(\d+)\.png for x/\1"),
        ("x/y/#.png", "#.png", r"with prepare\.csv\.folder=x/y, such as x/y/(\d+)\.png for \1\.png"),
        ("x/#.png", "#", r"with prepare\.csv\.folder=x and prepare\.csv\.suffix=\.png, such as x/(\d+)\.png for \1"),
        ("x/IMG_#.PNG", "x/IMG_#.png", r"but for the case of letters, such as x/IMG_(\d+)\.PNG for x/IMG_\1\.png"),
        ("x/a_#.png", "X/A_#.png", r"but for the case of letters, such as x/a_(\d+)\.png for X/A_\1\.png"),
        (
            "x/a_#.png",
            "X/A_#",
            r"but for the case of letters and with prepare\.csv\.suffix=\.png, such as x/a_(\d+)\.png for X/A_\1",
        ),
        ("x/#.png", "set/x/#.png", r"without 'set/', such as x/(\d+)\.png for set/x/\1\.png"),
    ],
)
def test_a_small_difference_is_named_once(tmp_path: Path, file: str, name: str, expected: str) -> None:
    text = said(tmp_path, file, name)
    assert re.fullmatch(f"40 of 40 missing files are there {expected}", text), text


def test_what_is_given_already_counts(tmp_path: Path) -> None:
    text = said(tmp_path, "x/#.v1.png", "x/#", csv__suffix=".v1")
    assert text.startswith("40 of 40 missing files are there with prepare.csv.suffix=.v1.png, such as x/")
    text = said(tmp_path, "x/#.png", "x/#.png", csv__folder="x")
    assert text.startswith("40 of 40 missing files are there without 'x/', such as x/")


def test_names_that_are_not_near(tmp_path: Path) -> None:
    assert said(tmp_path, "x/#.png", "x/a#.png") == ""
    assert said(tmp_path, "x/#.png", "y/#.png") == ""


@pytest.mark.parametrize(
    ("name", "changes"),
    [("#", {"csv__folder": "x/y", "csv__suffix": ".png"}), ("y/#", {"csv__folder": "x/", "csv__suffix": ".png"})],
)
def test_folder_and_suffix(tmp_path: Path, name: str, changes: dict[str, str]) -> None:
    root = tmp_path / "set"
    for i in range(40):
        write_image(root / f"x/y/{i}.png", i)
    rows = [f"{name.replace('#', str(i))},{'ab'[i % 2]}\n" for i in range(40)]
    (root / "labels.csv").write_text("".join(["image,label\n", *rows]))
    prepare(prepare_params("csv", root, **changes), tmp_path / "prepared")
    assert pd.read_csv(tmp_path / "prepared/manifest.csv")["source"].tolist() == [f"x/y/{i}.png" for i in range(40)]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    write_image(tmp_path / "x/1.png", 0)
    (tmp_path / "labels.csv").write_text("image,label\n1.png,a\n")
    with pytest.raises(InputError, match=r"^prepare\.csv\.folder: '.*/z' is no folder$"):
        prepare(prepare_params("csv", tmp_path, csv__folder="z"), tmp_path.parent / "prepared")

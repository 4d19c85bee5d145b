"""What load_source makes of the rows that a source gives: classes, labels, and what is rejected for its text."""

from pathlib import Path

import pandas as pd
import pytest

from stages.base.errors import InputError
from stages.prepare import prepare
from stages.sources.loading import load_source
from tests.conftest import params_with, write_image
from tests.test_prepare import forty_images, prepare_params


def test_the_order_of_classes_is_given(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / name / "1.png", 0)
    assert load_source(prepare_params("folder"), tmp_path).classes == ["a", "b", "c"]
    assert load_source(prepare_params("folder", classes=["c", "a", "b"]), tmp_path).classes == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("classes", "listed"),
    [
        (["Cat", "cat", "dog"], r"  'Cat', 'cat'\n"),
        (["cat ", "cat", "dog"], r"  'cat', 'cat '\n"),
        (["a  b", "a b", "dog"], r"  'a  b', 'a b'\n"),
        (["caf\u00e9", "cafe\u0301", "dog"], r"  'cafe\\u0301', 'caf\u00e9'\n"),
    ],
)
def test_classes_that_look_alike(tmp_path: Path, classes: list[str], listed: str) -> None:
    for name in classes:
        write_image(tmp_path / name / "1.png", 0)
    with pytest.raises(InputError, match=f"Unicode form:\n{listed}Merge them, or list them in prepare.classes"):
        load_source(prepare_params("folder"), tmp_path)
    assert load_source(prepare_params("folder", classes=classes), tmp_path).classes == classes


def test_a_carriage_return_is_refused_and_the_tables_stay_whole(tmp_path: Path) -> None:
    root = forty_images(tmp_path / "set", {"a/x\ry.png": "a/00.png", "b/x\ny.png": "b/01.png"})
    prepare(prepare_params("folder", on_bad="skip"), root, tmp_path / "prepared")
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv", keep_default_na=False)
    assert rejected[["source", "reason"]].to_numpy().tolist() == [
        ["b/x\ny.png", "duplicate: equal to b/01.png"],
        ["a/x\\ry.png", "not a name: it holds a carriage return"],
    ]
    (tmp_path / "labels.csv").write_text('image,label\n"a\r.png",a\nb.png,"b\rc"\nc.png,c\n', newline="")
    source = load_source(prepare_params("csv"), tmp_path)
    assert source.rows[["source", "label"]].to_numpy().tolist() == [
        ["a\\r.png", "a"],
        ["b.png", "b\\rc"],
        ["c.png", "c"],
    ]
    assert {row: str(rejection) for row, rejection in source.rejections.items()} == {
        0: "not a name: it holds a carriage return",
        1: "not a label: it holds a carriage return",
    }


def test_prepare_classes_may_be_those_of_a_built_in_source_alone(tmp_path: Path) -> None:
    names = load_source(params_with({}).prepare, tmp_path).classes
    assert load_source(params_with({"prepare.classes": names}).prepare, tmp_path).classes == names
    with pytest.raises(InputError, match=r"prepare\.classes: \['one', 'two'\], should be null for digits"):
        load_source(params_with({"prepare.classes": ["one", "two"]}).prepare, tmp_path)

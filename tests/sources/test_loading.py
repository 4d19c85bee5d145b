"""What load_source makes of the rows that a source gives: classes, labels, and what is rejected for its text."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from stages.base.errors import InputError
from stages.prepare import prepare
from stages.sources import loading
from stages.sources.loading import in_order, load_source
from tests.conftest import params_with, write_image
from tests.test_prepare import forty_images, prepare_params


def test_the_order_of_classes_is_given(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / name / "1.png", 0)
    assert load_source(prepare_params("folder", tmp_path)).classes == ["a", "b", "c"]
    assert load_source(prepare_params("folder", tmp_path, classes=["c", "a", "b"])).classes == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (map(str, range(12)), "0 1 2 3 4 5 6 7 8 9 10 11"),
        (["10.0", "9.0", "2.5"], "2.5 9.0 10.0"),
        (["+1", "-2", "-10", "007"], "-10 -2 +1 007"),
        (["7", "07"], "07 7"),
        (["10", "9", "b"], "10 9 b"),
        (["1e3", "2"], "1e3 2"),
    ],
)
def test_numbers_are_ordered_as_numbers(names: Iterable[str], ordered: str) -> None:
    assert " ".join(in_order(names)) == ordered


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    for number in range(36):
        write_image(tmp_path / "set" / str(number % 12) / f"{number}.png", number)
    fractions = {"valid_fraction": 0.33, "test_fraction": 0.33}
    prepare(prepare_params("folder", tmp_path / "set", **fractions), tmp_path / "prepared")
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert facts["classes"] == [str(number) for number in range(12)]
    manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
    assert (manifest["label"] == manifest["source"].str.split("/").str[0].astype(int)).all()


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
        load_source(prepare_params("folder", tmp_path))
    assert load_source(prepare_params("folder", tmp_path, classes=classes)).classes == classes


def test_a_carriage_return_is_refused_and_the_tables_stay_whole(tmp_path: Path) -> None:
    root = forty_images(tmp_path / "set", {"a/x\ry.png": "a/00.png", "b/x\ny.png": "b/01.png"})
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "prepared")
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv", keep_default_na=False)
    assert rejected[["source", "reason"]].to_numpy().tolist() == [
        ["b/x\ny.png", "duplicate: equal to b/01.png"],
        ["a/x\\ry.png", "not a name: it holds a carriage return"],
    ]


def test_prepare_classes_may_be_those_of_a_built_in_source_alone() -> None:
    names = load_source(params_with({}).prepare).classes
    assert load_source(params_with({"prepare.classes": names}).prepare).classes == names
    with pytest.raises(InputError, match=r"prepare\.classes: \['one', 'two'\], should be null for digits"):
        load_source(params_with({"prepare.classes": ["one", "two"]}).prepare)


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("digits", "data/rawx", r"prepare\.path: 'data/rawx', should be data/none for digits, which are embedded"),
        ("digits", "data/raw", r"prepare\.path: 'data/raw', should be data/none .*prepare\.source: folder or csv"),
        (
            "fashion_mnist",
            "data/rawx",
            r"data/rawx/train-images-idx3-ubyte: no such file, .* with prepare\.path: data/none",
        ),
        ("folder", "data/none", r"prepare\.path: 'data/none', should be the folder of your images .*source: folder"),
        ("csv", "data/./none", r"prepare\.path: 'data/none', should be the folder of your images .*source: csv"),
        ("folder", "data/rawx", r"prepare\.path: 'data/rawx' is no folder"),
    ],
)
def test_a_path_that_the_source_does_not_read(source: str, path: str, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_source(params_with({"prepare.source": source, "prepare.path": path}).prepare)


def test_a_function_in_the_table_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{number}.png", "ab"[number % 2], "", None) for number in range(6)]
    monkeypatch.setitem(loading.USER_SOURCES, "mine", lambda _params, _raw: rows)
    source = load_source(prepare_params("mine", path=tmp_path))
    assert source.rows["source"].tolist() == [row[0] for row in rows]
    assert source.classes == ["a", "b"]


def test_names_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (
        r"prepare\.source: 'folders' is unknown \(did you mean folder\?\); accepted: digits, fashion_mnist, folder, csv"
    )
    with pytest.raises(InputError, match=expected):
        load_source(prepare_params("folders", path=tmp_path))
    monkeypatch.setitem(loading.PUBLISHED, "mine", {})
    with pytest.raises(InputError, match=r"sources/loading\.py: 'mine' is \{\}, should be a class or function"):
        load_source(prepare_params("mine", path=tmp_path))

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from stages.base.errors import InputError
from stages.prepare import prepare
from tests.conftest import changed


def test_prepared_digits(digits: Path) -> None:
    source = load_digits()
    images = np.load(digits / "images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert np.array_equal(np.round(images / 255 * 16), source.images)

    manifest = pd.read_csv(digits / "manifest.csv")
    assert manifest.columns.tolist() == ["index", "split", "label", "source"]
    assert manifest["index"].tolist() == list(range(1797))
    assert manifest["label"].tolist() == source.target.tolist()
    assert manifest["source"].iloc[3] == "digits/3"
    assert manifest["split"].value_counts().to_dict() == {"train": 1259, "test": 359, "valid": 179}

    facts = json.loads((digits / "dataset.json").read_text())
    training = images[manifest["split"] == "train"]
    assert facts["classes"][3] == "three"
    assert facts["mean"] == [pytest.approx(training.mean() / 255, rel=1e-5)]
    assert facts["std"] == [pytest.approx(training.std() / 255, rel=1e-5)]
    assert facts["sizes"] == {"train": 1259, "valid": 179, "test": 359}


def test_twice_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    prepare(changed({}).prepare, tmp_path / "none", tmp_path / "again")
    names = sorted(path.name for path in digits.iterdir())
    assert names == ["dataset.json", "images.npy", "manifest.csv"]
    for name in names:
        assert (digits / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "old.txt").touch()
    prepare(changed({}).prepare, tmp_path / "none", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "images.npy", "manifest.csv"]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"prepare.valid_fraction": 0.6, "prepare.test_fraction": 0.6}, r"train 0, valid \d+, test \d+"),
        ({"prepare.valid_fraction": 0.0001, "prepare.test_fraction": 0.0001}, r"train 178, valid 0, test 0"),
    ],
)
def test_fractions_that_leave_a_split_empty(tmp_path: Path, changes: dict[str, float], counts: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)prepare\.valid_fraction 0.* too few:\n  zero: {counts}\n  one: "):
        prepare(changed(changes).prepare, tmp_path, tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


def test_built_in_images_in_another_size_and_in_colour(digits: Path, tmp_path: Path) -> None:
    params = changed({"prepare.channels": 3, "prepare.image_size": 16}).prepare
    prepare(params, tmp_path, tmp_path / "prepared")
    small, large = np.load(digits / "images.npy"), np.load(tmp_path / "prepared/images.npy")
    assert large.shape == (1797, 3, 16, 16)
    assert (large[:, 0] == large[:, 2]).all()
    assert np.abs(large[:, 0].reshape(1797, 8, 2, 8, 2).mean(axis=(2, 4)) - small).mean() < 15
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert (facts["channels"], facts["image_size"], len(facts["mean"]), len(facts["std"])) == (3, 16, 3, 3)

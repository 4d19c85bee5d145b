import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from stages.command import InputError
from stages.prepare import digest, mean_and_std, prepare, split_of
from tests.conftest import changed

LABELS = np.array([0] * 20 + [1] * 40, dtype=np.int64)


def counts(split: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    return {name: np.bincount(labels[split == name], minlength=2).tolist() for name in ("train", "valid", "test")}


def test_split_is_stratified() -> None:
    split = split_of(LABELS, n_test=None, valid_fraction=0.1, test_fraction=0.25, seed=0)
    assert counts(split, LABELS) == {"train": [13, 26], "valid": [2, 4], "test": [5, 10]}


def test_the_source_s_own_test_split_is_kept() -> None:
    split = split_of(LABELS, n_test=30, valid_fraction=0.1, test_fraction=0.25, seed=0)
    assert (split[30:] == "test").all()
    assert counts(split, LABELS) == {"train": [18, 9], "valid": [2, 1], "test": [0, 30]}


def test_split_follows_from_the_seed() -> None:
    one, same, other = (split_of(LABELS, None, 0.1, 0.2, seed) for seed in (5, 5, 6))
    assert (one == same).all()
    assert (one != other).any()


def test_mean_and_deviation_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    assert mean_and_std(images) == pytest.approx((images.mean() / 255, images.std() / 255), rel=1e-12)
    assert mean_and_std(np.array([[[0, 255]]], dtype=np.uint8)) == (0.5, 0.5)


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


def test_digest_is_of_images_and_labels() -> None:
    images, labels = np.zeros((1, 2, 2), np.uint8), np.array([258])
    expected = hashlib.sha256(b"\0\0\0\0" + b"\x02\x01\0\0\0\0\0\0").hexdigest()
    assert digest(images, labels) == expected


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
    ("changes", "empty"),
    [
        ({"prepare.valid_fraction": 0.6, "prepare.test_fraction": 0.6}, "train"),
        ({"prepare.valid_fraction": 0.0001, "prepare.test_fraction": 0.0001}, "valid, test"),
    ],
)
def test_fractions_that_leave_a_split_empty(tmp_path: Path, changes: dict[str, float], empty: str) -> None:
    with pytest.raises(InputError, match=f"leave no image for {empty}"):
        prepare(changed(changes).prepare, tmp_path, tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []

import numpy as np
import pandas as pd

from stages.sources.splits import assign_splits, incomplete_classes

LABELS = np.array([0] * 20 + [1] * 40, dtype=np.int64)
NONE = np.full(60, "", object)
BOTH = {"valid": 0.1, "test": 0.25}


def counts(split: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    return {name: np.bincount(labels[split == name], minlength=2).tolist() for name in ("train", "valid", "test")}


def test_split_is_stratified() -> None:
    split = assign_splits(LABELS, NONE, BOTH, seed=0)
    assert counts(split, LABELS) == {"train": [13, 26], "valid": [2, 4], "test": [5, 10]}


def test_a_given_test_split_is_kept() -> None:
    given = np.array(["train"] * 30 + ["test"] * 30, object)
    split = assign_splits(LABELS, given, {"valid": 0.1}, seed=0)
    assert (split[30:] == "test").all()
    assert counts(split, LABELS) == {"train": [18, 9], "valid": [2, 1], "test": [0, 30]}


def test_a_given_validation_split_is_kept() -> None:
    given = np.array((["train"] * 8 + ["valid"] * 2) * 6, object)
    split = assign_splits(LABELS, given, {"test": 0.25}, seed=0)
    assert (split[given == "valid"] == "valid").all()
    assert counts(split, LABELS) == {"train": [12, 24], "valid": [4, 8], "test": [4, 8]}


def test_given_splits_are_kept_whole() -> None:
    given = np.array(["train", "valid", "test"] * 20, object)
    assert assign_splits(LABELS, given, {}, seed=0).tolist() == given.tolist()


def test_split_follows_from_the_seed() -> None:
    one, same, other = (assign_splits(LABELS, NONE, BOTH, seed) for seed in (5, 5, 6))
    assert (one == same).all()
    assert (one != other).any()


def test_every_class_with_too_few_images_is_named() -> None:
    split = ["train", "valid", "test", "train", "test", "train"]
    manifest = pd.DataFrame({"split": split, "label": [0, 0, 0, 1, 1, 2]})
    assert incomplete_classes(manifest, ["a", "b", "c", "d"], {"valid": 0.1}) == [
        "each class needs an image in each split (prepare.valid_fraction 0.1 of each class); too few:",
        "  b: train 1, valid 0, test 1",
        "  c: train 1, valid 0, test 0",
        "  d: train 0, valid 0, test 0",
    ]
    assert incomplete_classes(manifest[:3], ["a"], {}) == []

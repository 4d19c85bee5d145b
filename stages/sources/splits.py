"""Which images train, which choose the best epoch, and which test."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import InputError, lines
from stages.base.text import printable

SPLITS = ("train", "valid", "test")
# The usual names of splits, in lower case, in folders and tables alike.
NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


def known_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Return which of the names, in any case, are those of splits, and of which: {name: split}.

    Raises InputError, which begins with `where`, if two of them are names of one split, such as test and eval.
    """
    splits = {name: NAMES[name.lower()] for name in sorted(names) if name.lower() in NAMES}
    for split in SPLITS:
        if len(same := [repr(name) for name, its in splits.items() if its == split]) > 1:
            raise InputError(f"{where} {' and '.join(same)}, which all mean {split}. Give each split one name.")
    return splits


def assign_splits(
    labels: npt.NDArray[np.int64], given: npt.NDArray[np.object_], shares: dict[str, float], seed: int
) -> npt.NDArray[np.str_]:
    """Return "train", "valid" or "test" for each of n images, (n,), every class in the same proportions.

    `labels` (n,) are the classes' numbers. `given` (n,) has the split that an image comes with, or "". `shares` has,
    for "valid" and "test" where the source lacks them, the share of each class to take from the other images.
    """
    # RandomState's stream is frozen; numpy may change the one of default_rng, and with it everybody's split.
    random = np.random.RandomState(seed)
    split = np.where(given == "", "train", given).astype("<U5")
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero((labels == label) & (split == "train")))
        n_test = round(shares.get("test", 0) * len(rows))
        n_valid = round(shares.get("valid", 0) * len(rows))
        split[rows[:n_test]] = "test"
        split[rows[n_test : n_test + n_valid]] = "valid"
    return split


def incomplete_classes(manifest: pd.DataFrame, classes: list[str], shares: dict[str, float]) -> list[str]:
    """Return the lines that name each class without an image in one of the splits; no lines if there is none.

    The manifest has the columns split and label, and `shares` is as `assign_splits` takes it.
    """
    of_split = {name: manifest.loc[manifest["split"] == name, "label"] for name in SPLITS}
    n_images = {name: np.bincount(labels, minlength=len(classes)) for name, labels in of_split.items()}
    incomplete = [
        f"{printable(name)}: " + ", ".join(f"{split} {n_images[split][i]}" for split in SPLITS)
        for i, name in enumerate(classes)
        if not all(n_images[split][i] for split in SPLITS)
    ]
    if not incomplete:
        return []
    taken = ", ".join(f"prepare.{name}_fraction {share:g} of each class" for name, share in shares.items())
    head = f"each class needs an image in each split{f' ({taken})' if taken else ''}; too few:"
    return [head, *lines(incomplete, most=100)]

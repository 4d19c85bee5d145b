"""Which images train, which choose the best epoch, and which test."""

import numpy as np
import numpy.typing as npt

from stages.sources.rejected import shown

SPLITS = ("train", "valid", "test")
MOST = 100  # classes that a message lists


def split_of(
    labels: npt.NDArray[np.int64], given: npt.NDArray[np.object_], missing: dict[str, float], seed: int
) -> npt.NDArray[np.str_]:
    """Return "train", "valid" or "test" for each image, every class in the same proportions.

    `given` has the same, or "" for an image whose split is made here. Of "valid" and "test" those in `missing` are
    taken from the images that are in neither, as these shares of each class.
    """
    # RandomState's stream is frozen; numpy may change the one of default_rng, and with it everybody's split.
    random = np.random.RandomState(seed)
    split = np.where(given == "", "train", given).astype("<U5")
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero((labels == label) & (split == "train")))
        n_held = round(missing.get("test", 0) * len(rows))
        n_valid = round(missing.get("valid", 0) * len(rows))
        split[rows[:n_held]] = "test"
        split[rows[n_held : n_held + n_valid]] = "valid"
    return split


def too_few(
    split: npt.NDArray[np.str_], label: npt.NDArray[np.int64], classes: list[str], missing: dict[str, float]
) -> list[str]:
    """Return the lines that name each class without an image in one of the splits; none if there is none."""
    n_images = {name: np.bincount(label[split == name], minlength=len(classes)) for name in SPLITS}
    few = [
        f"  {shown(name)}: " + ", ".join(f"{split} {n_images[split][i]}" for split in SPLITS)
        for i, name in enumerate(classes)
        if not all(n_images[split][i] for split in SPLITS)
    ]
    if not few:
        return []
    made = ", ".join(f"prepare.{name}_fraction {fraction:g} of each class" for name, fraction in missing.items())
    return [
        "each class needs an image in each split" + (f" ({made})" if made else "") + "; too few:",
        *few[:MOST],
        *([f"  and {len(few) - MOST:,} more"] if len(few) > MOST else []),
    ]

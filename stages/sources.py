"""Where images come from: `load(knobs, raw)` returns what is known of them before any file of the user is decoded."""

import hashlib
import sys
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages import folders, params
from stages.command import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADS = Path("~/.cache/repronet")


@dataclass(frozen=True)
class Source:
    rows: pd.DataFrame  # one row an image: source, label, split and reason, as stages.folders describes them
    classes: list[str]
    images: npt.NDArray[np.uint8] | None  # (n, h, w), grayscale; None: `source` names the files


def load(knobs: params.Prepare, raw: Path) -> Source:
    """Return the source that `prepare.source` names; `raw` is the folder with what the user brought.

    Raises InputError for what cannot be read as a whole. What is wrong with single images stands in their rows.
    """
    listed = knobs.classes
    if listed is not None and (len(set(listed)) < len(listed) or len(listed) < 2):
        raise InputError(f"prepare.classes: {listed}, should be two or more different names")
    if knobs.source in BUILT_IN:
        source = BUILT_IN[knobs.source](raw)
        if listed not in (None, source.classes):
            raise InputError(
                f"prepare.classes: {listed}, should be null for {knobs.source}, whose own are {source.classes}"
            )
        return source

    rows = BROUGHT[knobs.source](knobs.csv, raw)
    if rows.empty:
        raise InputError(f"prepare.path: {str(raw)!r} has no images")
    if (given := set(rows["split"]) - {""}) and "train" not in given:
        raise InputError(f"{raw} has no images for train, only for {', '.join(sorted(given))}")
    _refuse_returns(rows)
    usable = rows["reason"] == ""
    rows.loc[usable & (rows["label"] == ""), "reason"] = "no label"
    classes = listed or sorted(set(rows["label"]) - {""})
    if len(classes) < 2:
        raise InputError(
            f"{raw} has images of {len(classes)} class{'es' if not classes else f', {classes[0]!r}'}; two are needed"
        )
    if listed is None:
        _check_unlike(classes, raw)
    strange = (rows["reason"] == "") & ~rows["label"].isin(classes)
    rows.loc[strange, "reason"] = "unknown label: " + rows.loc[strange, "label"] + ", which is not in prepare.classes"
    return Source(rows, classes, None)


def _refuse_returns(rows: pd.DataFrame) -> None:
    """Give a reason to images with a carriage return in path or label, which no CSV file keeps, and show it escaped."""
    for column, kind in (("source", "name"), ("label", "label")):
        holds = rows[column].str.contains("\r", regex=False)
        rows.loc[holds & (rows["reason"] == ""), "reason"] = f"not a {kind}: it holds a carriage return"
        rows.loc[holds, column] = rows.loc[holds, column].str.replace("\r", "\\r", regex=False)


def _check_unlike(classes: list[str], raw: Path) -> None:
    """Raise InputError for names of classes that look alike: who wrote them may have meant one class."""
    alike = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())].append(
            name
        )
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        # A composed and a decomposed letter look the same, unless one is written in ASCII.
        lines = ["  " + ", ".join(map(_told_apart, names)) for names in groups[:20]]
        raise InputError(
            f"{raw} has classes whose names differ only in case, spaces or Unicode form:\n"
            + "\n".join([*lines, *([f"  and {len(groups) - 20:,} more"] if len(groups) > 20 else [])])
            + "\nMerge them, or list them in prepare.classes if they are meant."
        )


def _told_apart(name: str) -> str:
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def _built_in(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], classes: list[str], names: list[str], n_test: int
) -> Source:
    """Return a source whose last `n_test` images are its own test split; 0: it has none."""
    split = ["train"] * (len(labels) - n_test) + ["test"] * n_test if n_test else ""
    label = np.array(classes, object)[labels]
    return Source(pd.DataFrame({"source": names, "label": label, "split": split, "reason": ""}), classes, images)


def _digits(_raw: Path) -> Source:
    from sklearn.datasets import load_digits  # 1 s to import, and only this source needs it

    digits = load_digits()
    return _built_in(
        images=np.round(digits.images * (255 / 16)).astype(np.uint8),  # from 17 levels, 0 to 16
        labels=digits.target,
        classes=["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        names=[f"digits/{i}" for i in range(len(digits.target))],
        n_test=0,
    )


# sha256 of the decompressed files, with the shape each holds.
FASHION_MNIST = {
    "train-images-idx3-ubyte": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60_000, 28, 28),
    ),
    "train-labels-idx1-ubyte": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        (60_000,),
    ),
    "t10k-images-idx3-ubyte": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10_000, 28, 28),
    ),
    "t10k-labels-idx1-ubyte": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        (10_000,),
    ),
}


def _fashion_mnist(raw: Path) -> Source:
    folder = _fashion_mnist_folder(raw / "fashion_mnist")
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder, name, expected, shape) for name, (expected, shape) in FASHION_MNIST.items()
    )
    return _built_in(
        images=np.concatenate([train_images, test_images]),
        labels=np.concatenate([train_labels, test_labels]),
        classes=[
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ],
        names=[f"train/{i}" for i in range(len(train_labels))] + [f"t10k/{i}" for i in range(len(test_labels))],
        n_test=len(test_labels),
    )  # fmt: skip


def _fashion_mnist_folder(brought: Path) -> Path:
    """Return the first place that has the files: the user's, Debian's package, a download (made here if need be)."""
    if brought.exists():
        return brought
    if DEBIAN.exists():
        return DEBIAN
    downloads = DOWNLOADS.expanduser()
    folder = downloads / "FashionMNIST" / "raw"
    if not all((folder / name).exists() for name in FASHION_MNIST):
        from torchvision.datasets import FashionMNIST  # 3 s to import, and only a first download needs it

        print(f"fashion_mnist: neither {brought} nor {DEBIAN} exists; downloading to {folder}", file=sys.stderr)
        try:
            FashionMNIST(str(downloads), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"prepare.source: 'fashion_mnist' is not here and cannot be downloaded: {error}\n"
                f"Put its four files, gzipped or not, into {brought} ({', '.join(FASHION_MNIST)}),\n"
                "or install Debian's package dataset-fashion-mnist."
            ) from error
    return folder


def _read_idx(folder: Path, name: str, expected: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file, gzipped or not. Raises InputError if it is not the one that is expected."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise InputError(f"{folder / name}: no such file, nor {name}.gz. {folder} must hold all four, or not exist.")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = zlib.decompressobj(wbits=31).decompress(content)  # of a cut file, what there is of it
        except zlib.error:
            content = b""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"{path} is not Fashion-MNIST's, or cut ({len(content):,} bytes when decompressed):\n"
            f"  sha256 found    {found}\n  sha256 expected {expected}\n"
            + (
                "Reinstall Debian's package dataset-fashion-mnist."
                if folder == DEBIAN
                else f"Fetch the file again, or remove {folder} to use Debian's package or a download."
            )
        )
    header = 4 + 4 * len(shape)  # a magic number, then each dimension, as 32-bit integers
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


BUILT_IN: dict[str, Callable[[Path], Source]] = {"digits": _digits, "fashion_mnist": _fashion_mnist}
BROUGHT: dict[str, Callable[[params.Table, Path], pd.DataFrame]] = {
    "folder": folders.from_folder,
    "csv": folders.from_csv,
}

"""Published sets: the digits that scikit-learn brings along, and Fashion-MNIST."""

import hashlib
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import InputError
from stages.base.params import NOTHING
from stages.base.text import warn
from stages.sources.source import Source

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADS = Path("~/.cache/repronet")


def digits(raw: Path) -> Source:
    """Return scikit-learn's digits, 1,797 images of 8x8 without a split of their own. InputError if `raw` is given."""
    if raw != NOTHING:
        raise InputError(
            f"prepare.path: {str(raw)!r}, should be {NOTHING} for digits, which are embedded.\n"
            "To use your own images, set prepare.source: folder or csv."
        )
    # What sklearn.datasets.load_digits reads; to import that takes a second.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    rows = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    return _published(
        images=np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8),  # they have 17 levels, 0 to 16
        labels=rows[:, -1],
        classes=["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        names=[f"digits/{i}" for i in range(len(rows))],
        n_test=0,
    )


# sha256 of the decompressed files, with the shape each holds.
FASHION_MNIST = {
    "train-images-idx3-ubyte": ("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", (60_000, 28, 28)),
    "train-labels-idx1-ubyte": ("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", (60_000,)),
    "t10k-images-idx3-ubyte": ("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", (10_000, 28, 28)),
    "t10k-labels-idx1-ubyte": ("0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", (10_000,)),
}


def fashion_mnist(raw: Path) -> Source:
    """Return Fashion-MNIST, 70,000 images of 28x28, of which the last 10,000 are its test split.

    Its files come from the folder `raw`, or where that is NOTHING from Debian's package or a download. Raises
    InputError if they are wrong or cannot be had.
    """
    folder = _published_folder() if raw == NOTHING else raw
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder, name, expected, shape) for name, (expected, shape) in FASHION_MNIST.items()
    )
    return _published(
        images=np.concatenate([train_images, test_images]),
        labels=np.concatenate([train_labels, test_labels]),
        classes=[
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ],
        names=[f"train/{i}" for i in range(len(train_labels))] + [f"t10k/{i}" for i in range(len(test_labels))],
        n_test=len(test_labels),
    )  # fmt: skip


def _published(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], classes: list[str], names: list[str], n_test: int
) -> Source:
    """Return a source whose last `n_test` images are its own test split; 0: it has none."""
    n_train = len(labels) - n_test
    splits = ["train" if n_test else ""] * n_train + ["test"] * n_test
    label = np.array(classes, object)[labels]
    return Source(pd.DataFrame({"source": names, "label": label, "split": splits}), {}, classes, images)


def _published_folder() -> Path:
    """Return the first folder that exists: Debian's package, or a download, which is made if need be."""
    if DEBIAN.exists():
        return DEBIAN
    downloads = DOWNLOADS.expanduser()
    folder = downloads / "FashionMNIST" / "raw"
    if not all((folder / name).exists() for name in FASHION_MNIST):
        from torchvision.datasets import FashionMNIST  # 3 s to import, and only a first download needs it

        warn(f"fashion_mnist: there is no {DEBIAN}; downloading to {folder}")
        try:
            FashionMNIST(str(downloads), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"prepare.source: 'fashion_mnist' is not here and cannot be downloaded: {error}\n"
                f"Put its four files, gzipped or not ({', '.join(FASHION_MNIST)}), into a folder\n"
                "that prepare.path names, or install Debian's package dataset-fashion-mnist."
            ) from error
    return folder


def _read_idx(folder: Path, name: str, expected: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file, gzipped or not. Raises InputError if it is not the expected one."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise InputError(
            f"{folder / name}: no such file, nor {name}.gz. {folder} should hold Fashion-MNIST's four files;"
            f" with prepare.path: {NOTHING} they come from Debian's package or a download."
        )
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = zlib.decompressobj(wbits=31).decompress(content)  # of a cut file, its start
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
                else f"Fetch the file again, or set prepare.path: {NOTHING} to use Debian's package or a download."
            )
        )
    header = 4 + 4 * len(shape)  # a magic number, then each dimension, as 32-bit integers
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

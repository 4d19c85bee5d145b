"""The array of the prepared pixels, and what is said of it as a whole, in memory that does not grow with it."""

import hashlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.base.errors import InputError
from stages.base.files import reserve

BLOCK = 16 << 20  # bytes of the images that are looked at together


def new_array(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the memory-mapped array of a new file, zeros. Raises InputError or OSError where the disk has no room."""
    n_bytes, free = math.prod(shape), shutil.disk_usage(file.parent).free
    if n_bytes > free:
        raise InputError(
            f"the prepared images, {' x '.join(map(str, shape))}, take {n_bytes:,} bytes,"
            f" and {file.parent} has {free:,} free; prepare.image_size is their side"
        )
    array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    reserve(file, file.stat().st_size)
    return array


def mean_and_std(array: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel's pixels in these rows, on a scale of 0 to 1.

    They are exact: from counts of the 256 levels. A channel that is constant has no deviation, and 1 stands for it.
    """
    counts = np.zeros((array.shape[1] if array.ndim == 4 else 1, 256), np.int64)
    for block in blocks(array, rows):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(block.reshape(len(block), len(counts), -1)[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = (counts * levels).sum(axis=1) / counts.sum(axis=1)
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    variance[variance == 0] = 1  # training divides by it, and 0 / 0 would make the net NaN
    return mean.tolist(), (variance**0.5).tolist()


def digest(array: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> str:
    """Return the sha256 of the images in these rows, and of their labels, in their order."""
    found = hashlib.sha256()
    for block in blocks(array, rows):
        found.update(np.ascontiguousarray(block).data)
    found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


def blocks(array: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the images in these rows, as many at a time as memory can do with."""
    n_images = max(1, BLOCK // array[0].nbytes)
    for start in range(0, len(rows), n_images):
        yield array[rows[start : start + n_images]]

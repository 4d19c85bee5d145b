"""The prepared images in several files, the shards, of which a small change touches few.

An image's shard follows from its name alone: the first bits of its sha256. So DVC, which keeps a file by its content,
caches, sends and fetches anew only the shards whose own images have changed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from stages.base import files
from stages.base.storage import store
from stages.sources.pixels import new_array

MB = 1_000_000


@dataclass(frozen=True)
class Layout:
    """Where the images of a source go."""

    places: npt.NDArray[np.int64]  # (n,), of each row of the source, in the shards laid end to end
    rows: npt.NDArray[np.int64]  # (s,), images in each shard, which may be none


def layout(names: Sequence[str], image_bytes: int, shard_mb: float | None) -> Layout:
    """Return the layout of images of this size, in shards of so many MB at most, on average; None: in one.

    There are hardly more shards than images, however small they are to be.

    Their number is a power of two: it seldom changes, and when it does each shard becomes two. In a shard images stay
    in their order.
    """
    bits = 0
    while shard_mb is not None and len(names) * image_bytes > shard_mb * MB * 2**bits and 2**bits < len(names):
        bits += 1
    if not bits:
        return Layout(np.arange(len(names)), np.array([len(names)]))
    heads = (int.from_bytes(sha256(name.encode()).digest()[:8]) >> (64 - bits) for name in names)
    shards = np.fromiter(heads, np.int64, len(names))
    places = np.empty(len(shards), np.int64)
    places[shards.argsort(kind="stable")] = np.arange(len(shards))
    return Layout(places, np.bincount(shards, minlength=2**bits))


def cut(whole: Path, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], to: str | None) -> pd.DataFrame:
    """Cut the file that `images` maps into shards of so many rows, beside it, or in the storage `to`; it is gone then.

    From its end on, which is taken off as soon as it is in a shard: the disk holds one shard twice, no more. Return
    one row a shard: file, rows, sha256. One without rows has none. Raises InputError if the storage takes none.
    """
    cuts = []
    end, before = len(images), whole.stat().st_size - images.nbytes  # of the file's head
    numbers = np.flatnonzero(rows).tolist()[::-1]
    for number in tqdm(numbers, unit=" shards", desc="cutting", disable=None, leave=False):
        start, file = end - int(rows[number]), whole.with_name(f"images-{number:05}.npy")
        new_array(file, (end - start, *images.shape[1:]))[:] = images[start:end]
        os.truncate(whole, before + images[:start].nbytes)
        name, digest = file.name, files.sha256(file)
        if to is not None:
            name = store(file, to, digest)
            file.unlink()
        cuts.append((name, end - start, digest))
        end = start
    whole.unlink()
    return pd.DataFrame(cuts[::-1], columns=["file", "rows", "sha256"])

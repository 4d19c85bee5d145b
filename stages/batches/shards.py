"""The images of a prepared set in several files, the shards, memory-mapped as they are needed."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.base.errors import InputError

# Shards whose images are shuffled together. Each holds images of all kinds, by a hash of their names, so eight mix them
# well, and no more than these and the next eight have to be at hand at once.
OPEN = 8
MAPPED = 4 * OPEN  # files that are open at once: a system allows for some hundreds


class Shards:
    """What stands in for one array, uint8 (n, h, w) or (n, 3, h, w), of the images in all shards, laid end to end.

    Another process opens the files itself. Raises InputError for a shard that is missing, cut or foreign.
    """

    def __init__(self, files: list[Path], rows: list[int], image_shape: tuple[int, ...]) -> None:
        self._made_of = files, rows, image_shape
        self._files, self._ends = files, np.cumsum(rows)
        self.shape = (int(self._ends[-1]), *image_shape)
        self._mapped = lru_cache(MAPPED)(self._map)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> Any:
        return Shards, self._made_of

    def shard_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the shard that each of these rows is in, (n,)."""
        return np.searchsorted(self._ends, rows, side="right")

    def take(self, rows: npt.NDArray[np.int64], axis: int = 0) -> npt.NDArray[np.uint8]:
        """Return the images in these rows, as numpy's `take` does."""
        assert axis == 0
        images, shards = np.empty((len(rows), *self.shape[1:]), np.uint8), self.shard_of(rows)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            array = self._mapped(shard)
            images[here] = array.take(rows[here] - (self._ends[shard] - len(array)), axis=0)
        return images

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        file, rows = self._files[shard], int(self._ends[shard]) - (int(self._ends[shard - 1]) if shard else 0)
        try:
            array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            if array.dtype != np.uint8 or array.shape != (rows, *self.shape[1:]):
                raise ValueError(f"{array.dtype} {array.shape}, should be uint8 {(rows, *self.shape[1:])}")
        except (OSError, EOFError, ValueError) as error:
            raise InputError(
                f"{file} is no shard of the prepared set: {type(error).__name__}: {error}."
                " Get it with dvc pull, or make it with dvc repro prepare."
            ) from error
        return array


def grouped(order: Tensor, shards: Tensor, generator: torch.Generator) -> Tensor:
    """Return the places in `order`, int64 (m,), shard by shard, OPEN of them at a time, in an order that is drawn.

    `shards`, int64 (n,), has the shard of each place. Those of a group of shards stay in their order: where all are
    one group, nothing changes and nothing is drawn.
    """
    present, which = shards.unique(return_inverse=True)
    if len(present) <= OPEN:
        return order
    group = torch.empty(len(present), dtype=torch.int64)
    group[torch.randperm(len(present), generator=generator)] = torch.arange(len(present)) // OPEN
    return order[group[which[order]].argsort(stable=True)]

"""The images of a prepared set in several files, the shards, memory-mapped as they are needed.

They are beside the manifest, or in storage, from which they are fetched into a cache.
"""

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.storage import GIGABYTES, Cache

# Shards whose images are shuffled together. Each holds images of all kinds, by a hash of their names, so eight mix them
# well, and no more than these and the next eight have to be at hand at once.
OPEN = 8
FETCHING = 4  # at once, for what one connection leaves of the network


class Shards:
    """What stands in for one array, uint8 (n, h, w) or (n, 3, h, w), of the images in all shards, laid end to end.

    Another process opens the files itself. Raises InputError for a shard that is missing, cut or foreign, and for a
    cache that has no room for those that a training needs at once.
    """

    def __init__(
        self,
        places: Sequence[str],
        rows: Sequence[int],
        digests: Sequence[str],
        image_shape: tuple[int, ...],
        cache: Cache | None = None,
    ) -> None:
        """With a `cache` the places are those of storage, else they are paths."""
        self._made_of = places, rows, digests, image_shape, cache
        self._places, self._digests, self._cache = places, digests, cache
        self._ends, self._bytes = np.cumsum(rows), math.prod(image_shape)
        self.shape = (int(self._ends[-1]), *image_shape)
        # What is mapped keeps its place on the disk when another process removes it.
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}  # the last used at the end
        self._asked: set[int] = set()  # of threads that fetch them, or wait for others to do so
        self._fetching = threading.Semaphore(FETCHING)
        at_once = min(2 * OPEN, len(rows))
        need = at_once * max(rows) * self._bytes
        if cache and cache.limit < need:
            raise InputError(
                f"{GIGABYTES}: {cache.limit / 1e9:g}, should be {need / 1e9:.2g} or more, for {at_once} shards"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> Any:
        return Shards, self._made_of

    @property
    def is_remote(self) -> bool:
        return self._cache is not None

    def shard_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the shard that each of these rows is in, (n,)."""
        return np.searchsorted(self._ends, rows, side="right")

    def take(self, rows: npt.NDArray[np.int64], axis: int = 0) -> npt.NDArray[np.uint8]:
        """Return the images in these rows, as numpy's `take` does."""
        assert axis == 0
        images, shards = np.empty((len(rows), *self.shape[1:]), np.uint8), self.shard_of(rows)
        wanted = np.unique(shards).tolist()
        for at in range(0, len(wanted), OPEN):
            for shard, array in zip(some := wanted[at : at + OPEN], self._mapped(some), strict=True):
                here = shards == shard
                images[here] = array.take(rows[here] - (self._ends[shard] - len(array)), axis=0)
        return images

    def ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Let the shards of these rows be fetched meanwhile. Call it once no more processes are to be forked."""
        self._ask_for(np.unique(self.shard_of(rows)).tolist() if self._cache else [])

    def _ask_for(self, shards: list[int]) -> None:
        for shard in shards:
            assert self._cache is not None
            if shard not in self._asked and not self._cache.file(self._places[shard], self._digests[shard]).exists():
                self._asked.add(shard)
                # Neither Ctrl-C nor the end of this process waits for it.
                threading.Thread(target=self._fetch, args=(shard,), daemon=True).start()

    def _fetch(self, shard: int) -> None:
        with suppress(Exception), self._fetching:  # what fails is said where the shard is needed
            self._file(shard)
        self._asked.discard(shard)

    def _mapped(self, shards: list[int]) -> list[npt.NDArray[np.uint8]]:
        """Return the arrays of OPEN shards at most."""
        new = [shard for shard in shards if shard not in self._maps]
        self._ask_for(new[1:] if self._cache else [])
        for shard in shards:
            self._maps[shard] = self._maps.pop(shard) if shard in self._maps else self._map(shard)
        while len(self._maps) > OPEN:
            del self._maps[next(iter(self._maps))]
        return [self._maps[shard] for shard in shards]

    def _file(self, shard: int) -> Path:
        if self._cache is None:
            return Path(self._places[shard])
        return self._cache.fetched(self._places[shard], self._digests[shard], self._n_rows(shard) * self._bytes)

    def _n_rows(self, shard: int) -> int:
        return int(self._ends[shard]) - (int(self._ends[shard - 1]) if shard else 0)

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        shape, is_again = (self._n_rows(shard), *self.shape[1:]), False
        while True:
            file = self._file(shard)
            try:
                array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
                if array.dtype != np.uint8 or array.shape != shape:
                    raise ValueError(f"{array.dtype} {array.shape}, should be uint8 {shape}")
            except (OSError, EOFError, ValueError) as error:
                if self._cache and isinstance(error, FileNotFoundError):
                    continue  # another process has just made room
                if self._cache and not is_again and not isinstance(error, OSError):
                    is_again = True
                    with suppress(OSError):
                        file.unlink()
                    continue
                remedy = "Get it with dvc pull, or make it with dvc repro prepare."
                if self._cache:
                    remedy = "It has the sha256 in shards.csv: dvc pull, or dvc repro -f prepare, brings one that fits."
                raise InputError(
                    f"{file} is no shard of the prepared set: {type(error).__name__}: {error}. {remedy}"
                ) from error
            return array


def grouped(order: Tensor, shards: Tensor, generator: torch.Generator) -> Tensor:
    """Return the places in `order`, int64 (m,), shard by shard, OPEN of them at a time, in an order that is drawn.

    `shards`, int64 (n,), has the shard of each place. Those of a group of shards stay in their order: where all are
    one group, nothing changes and nothing is drawn.
    """
    present = shards.bincount().nonzero().flatten()
    if len(present) <= OPEN:
        return order
    # numpy sorts few bits by radix: a third of the time.
    group = np.empty(int(present[-1]) + 1, np.min_scalar_type(len(present) // OPEN))
    group[present[torch.randperm(len(present), generator=generator)]] = np.arange(len(present)) // OPEN
    return order[torch.from_numpy(group[shards[order]].argsort(kind="stable"))]

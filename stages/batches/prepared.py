"""The prepared set, as prepare wrote it: what dataset.json says, and the images of each split, memory-mapped."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.files import read_csv
from stages.base.shared import Shared
from stages.base.storage import Cache, check_place, is_stored
from stages.batches.shards import OPEN, Shards

RESIDENT = 2 << 30  # bytes of a split that is copied to a GPU, or kept in memory, as a whole


@dataclass(frozen=True)
class Split:
    """The images of "train", "valid" or "test"; they stay on disk, and in the system's page cache, until taken."""

    images: npt.NDArray[np.uint8] | Shards  # (N, h, w) or (N, 3, h, w), of all splits, memory-mapped
    labels: Tensor  # int64 (n,), on the device
    rows: Tensor  # int64 (n,), of each image in `images`, on the CPU
    is_kept: bool = False  # in memory, if the images are few and would have to be fetched again

    def read(self, indices: Tensor | slice) -> Tensor:
        """Return m of the split's n images, uint8 (m, h, w) or (m, 3, h, w), on the CPU."""
        indices = indices.cpu() if isinstance(indices, Tensor) else indices
        if self.is_kept and self._is_in_memory:
            return self._resident[indices].cpu()
        rows = self.rows[indices]
        return torch.from_numpy(self.images.take(rows.numpy(), axis=0))  # torch has no read-only tensors

    def take(self, indices: Tensor | slice, there: Tensor | None = None) -> Tensor:
        """Return the same on the device of the labels; `there` are the indices on it, where they are known."""
        if self.is_resident:
            return self._resident[indices if there is None else there]
        return on_device(self.read(indices), self.labels.device)

    def part(self, indices: Tensor) -> "Split":
        """Return the images at these places, int64 (m,), as a split."""
        return Split(self.images, self.labels[indices.to(self.labels.device)], self.rows[indices], self.is_kept)

    def ahead(self, indices: Tensor | slice) -> None:
        """Let what these images need be fetched meanwhile: they are `reach` behind those that are taken."""
        if self.reach and not self._is_in_memory:
            assert isinstance(self.images, Shards)
            self.images.ahead(self.rows[indices].numpy())

    @cached_property
    def reach(self) -> int:
        """The images of the split in as many shards as are open at once, on average; 0 if nothing is to be fetched."""
        is_remote = isinstance(self.images, Shards) and self.images.is_remote
        return OPEN * len(self.rows) // len(self.shards.unique()) if is_remote and self.shards is not None else 0

    def __reduce__(self) -> Any:
        """Let a process that is no fork open the images itself, and keep off the GPU."""
        images = self.images if isinstance(self.images, Shards) else Shared(self.images)
        return _split, (images, self.labels.cpu(), self.rows)

    @cached_property
    def shards(self) -> Tensor | None:
        """Return the shard of each image, int64 (n,); None where all images are in one file."""
        return torch.from_numpy(self.images.shard_of(self.rows.numpy())) if isinstance(self.images, Shards) else None

    @property
    def is_resident(self) -> bool:
        """Return whether `take` gives images that are on the device once and for all; on the CPU the map serves."""
        is_few = len(self.rows) * math.prod(self.images.shape[1:]) <= RESIDENT
        return is_few and (self.is_kept or self.labels.device.type != "cpu")

    @cached_property
    def _resident(self) -> Tensor:
        return self.read(slice(None)).to(self.labels.device)

    @property
    def _is_in_memory(self) -> bool:
        return "_resident" in vars(self)


def _split(images: Shared | Shards, labels: Tensor, rows: Tensor) -> Split:
    return Split(images if isinstance(images, Shards) else images.array, labels, rows)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`. CUDA copies it while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    """Raise InputError in place of what a missing, cut or foreign file raises."""
    try:
        yield
    except InputError:  # which says more
        raise
    except (OSError, EOFError, ValueError, LookupError, RecursionError) as error:
        raise InputError(
            f"{folder} is not a prepared set: {type(error).__name__}: {error}. Make it with dvc repro prepare."
        ) from error


class DatasetInfo:
    """What dataset.json says of a prepared set.

    `mean` and `std` are of each channel's training pixels, on a scale of 0 to 1; `sizes` and `sha256` are the number
    of images in each split and the digest of these and their labels. Raises InputError for a file that is missing, cut
    or foreign.
    """

    def __init__(self, folder: Path) -> None:
        with _complete(folder):
            self.folder = folder
            info: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            self.info = info  # all of it
            self.source: str = info["source"]
            self.classes: list[str] = info["classes"]
            self.channels: int = info["channels"]
            self.image_size: int = info["image_size"]
            self.mean: list[float] = info["mean"]
            self.std: list[float] = info["std"]
            # How an image becomes one of these, as sources.images.ImageSpec takes it; earlier versions did not say.
            own: dict[str, Any] = info.get("decoding", {})
            self.decoding = {"channels": self.channels, "size": self.image_size} | own if own else {}
            self.sizes: dict[str, int] = info["sizes"]
            self.sha256: dict[str, str] = info["sha256"]
            # Images of each class in each split; earlier versions did not say.
            self.counts: dict[str, list[int]] = info.get("counts", {})

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (h, w) of grayscale images, (3, h, w) of coloured ones."""
        side = (self.image_size, self.image_size)
        return side if self.channels == 1 else (self.channels, *side)


class Prepared(DatasetInfo):
    """The folder that prepare wrote. Raises InputError if it is incomplete, or its files contradict each other."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with _complete(folder):
            self._is_sharded = (folder / "shards.csv").exists()
            columns = {"index": "int64", "split": "category", "label": "int64"}
            self._images: npt.NDArray[np.uint8] | Shards
            if self._is_sharded:
                file, images = "manifest.parquet", "the shards"
                self._images = _shards(folder, self.image_shape)
                self._manifest = pd.read_parquet(folder / file, columns=list(columns)).astype(columns)
            else:
                file, images = "manifest.csv", "images.npy"
                # One that could be written to, if only in memory, would be refused beyond the size of the memory.
                self._images = np.asarray(np.load(folder / images, mmap_mode="r", allow_pickle=False))
                self._manifest = pd.read_csv(folder / file, usecols=list(columns), dtype=columns)
                if self._images.dtype != np.uint8 or self._images.shape[1:] != self.image_shape:
                    found = f"{self._images.dtype} {self._images.shape[1:]}"
                    raise ValueError(f"images of {found} in images.npy, of uint8 {self.image_shape} in dataset.json")
            _check_within("index", self._manifest["index"], file, len(self._images), f"rows in {images}")
            _check_within("label", self._manifest["label"], file, len(self.classes), "classes in dataset.json")
            if repeated := int(self._manifest["index"].duplicated().sum()):
                raise ValueError(f"{repeated} rows of {images} stand in {file} more than once")

    def split(self, name: str, device: torch.device) -> Split:
        """Return the images of "train", "valid" or "test"."""
        rows = self._manifest[self._manifest["split"] == name]
        return Split(
            images=self._images,
            labels=torch.tensor(rows["label"].to_numpy(), device=device),
            rows=torch.tensor(rows["index"].to_numpy()),
            # Validation comes again and again, and its images are some of every shard.
            is_kept=name != "train" and isinstance(self._images, Shards) and self._images.is_remote,
        )

    def sources(self, name: str) -> list[str]:
        """Return what each image of a split is called: its file in the manifest, or where that has none its row."""
        with _complete(self.folder):
            if self._is_sharded:
                columns = pd.read_parquet(self.folder / "manifest.parquet", columns=["split", "source"])
                return columns["source"][columns["split"] == name].tolist()
            file = self.folder / "manifest.csv"
            manifest = read_csv(file, usecols=lambda name: name != "label", dtype=str, keep_default_na=False)
            rows = manifest[manifest["split"] == name]
            return list(rows["source"] if "source" in rows else "images.npy/" + rows["index"])


def _shards(folder: Path, image_shape: tuple[int, ...]) -> Shards:
    """Return what shards.csv names. Raises OSError or ValueError if a shard beside it is missing or too short."""
    table = read_csv(folder / "shards.csv", dtype={"file": str, "rows": "int64", "sha256": str}, keep_default_na=False)
    places, rows, digests = (table[name].tolist() for name in ("file", "rows", "sha256"))
    for wrong in [digest for digest in digests if not re.fullmatch("[0-9a-f]{64}", digest)]:
        raise ValueError(f"{wrong!r} in shards.csv is no sha256")
    if all(map(is_stored, places)):
        for place in {place.rpartition("/")[0] for place in places}:
            check_place(f"{folder}/shards.csv", place)
        return Shards(places, rows, digests, image_shape, Cache.from_environment(os.environ))
    for wrong in [name for name in places if Path(name).name != name or not name]:
        raise ValueError(f"{wrong!r} in shards.csv is no file beside it")
    files = [folder / name for name in places]
    for file, n_images in zip(files, rows, strict=True):
        if (size := file.stat().st_size) <= n_images * math.prod(image_shape):
            raise ValueError(f"{file.name} has {size:,} bytes, too few for {n_images:,} images of {image_shape}")
    return Shards([str(file) for file in files], rows, digests, image_shape)


def _check_within(column: str, values: "pd.Series[int]", file: str, count: int, what: str) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < count:
        raise ValueError(f"{column} from {values.min()} to {values.max()} in {file}, {count} {what}")

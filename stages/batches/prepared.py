"""The prepared set, as prepare wrote it: what dataset.json says, and the images of each split, memory-mapped."""

import json
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

RESIDENT = 2 << 30  # bytes of a split that is copied to a GPU as a whole


@dataclass(frozen=True)
class Split:
    """The images of "train", "valid" or "test"; they stay on disk, and in the system's page cache, until taken."""

    images: npt.NDArray[np.uint8]  # (N, h, w) or (N, 3, h, w), of all splits, memory-mapped
    labels: Tensor  # int64 (n,), on the device
    rows: Tensor  # int64 (n,), of each image in `images`, on the CPU

    def read(self, indices: Tensor | slice) -> Tensor:
        """Return m of the split's n images, uint8 (m, h, w) or (m, 3, h, w), on the CPU."""
        rows = self.rows[indices.cpu() if isinstance(indices, Tensor) else indices]
        return torch.from_numpy(self.images.take(rows.numpy(), axis=0))  # torch has no read-only tensors

    def take(self, indices: Tensor | slice, there: Tensor | None = None) -> Tensor:
        """Return the same on the device of the labels; `there` are the indices on it, where they are known."""
        if self._resident is not None:
            return self._resident[indices if there is None else there]
        return on_device(self.read(indices), self.labels.device)

    def part(self, indices: Tensor) -> "Split":
        """Return the images at these places, int64 (m,), as a split."""
        return Split(self.images, self.labels[indices.to(self.labels.device)], self.rows[indices])

    def __reduce__(self) -> Any:
        """Let a process that is no fork open the images itself, and keep off the GPU."""
        return _split, (Shared(self.images), self.labels.cpu(), self.rows)

    @cached_property
    def _resident(self) -> Tensor | None:
        """All images of the split on the GPU, if they are few; on the CPU the memory map serves."""
        if self.labels.device.type == "cpu" or len(self.rows) * self.images[:1].nbytes > RESIDENT:
            return None
        return self.read(slice(None)).to(self.labels.device)


def _split(images: Shared, labels: Tensor, rows: Tensor) -> Split:
    return Split(images.array, labels, rows)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`. CUDA copies it while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    """Raise InputError in place of what a missing, cut or foreign file raises."""
    try:
        yield
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
            # A mapping that could be written to, if only in memory, would be refused beyond the size of the memory.
            self._images = np.asarray(np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False))
            self._manifest = pd.read_csv(
                folder / "manifest.csv",
                usecols=["index", "split", "label"],
                dtype={"index": "int64", "split": "category", "label": "int64"},
            )
            if self._images.dtype != np.uint8 or self._images.shape[1:] != self.image_shape:
                found = f"{self._images.dtype} {self._images.shape[1:]}"
                raise ValueError(f"images of {found} in images.npy, of uint8 {self.image_shape} in dataset.json")
            _check_within("index", self._manifest["index"], len(self._images), "rows in images.npy")
            _check_within("label", self._manifest["label"], len(self.classes), "classes in dataset.json")
            if repeated := int(self._manifest["index"].duplicated().sum()):
                raise ValueError(f"{repeated} rows of images.npy stand in manifest.csv more than once")

    def split(self, name: str, device: torch.device) -> Split:
        """Return the images of "train", "valid" or "test"."""
        rows = self._manifest[self._manifest["split"] == name]
        return Split(
            images=self._images,
            labels=torch.tensor(rows["label"].to_numpy(), device=device),
            rows=torch.tensor(rows["index"].to_numpy()),
        )

    def sources(self, name: str) -> list[str]:
        """Return what each image of a split is called: its file in the manifest, or where that has none its row."""
        with _complete(self.folder):
            file = self.folder / "manifest.csv"
            manifest = read_csv(file, usecols=lambda name: name != "label", dtype=str, keep_default_na=False)
            rows = manifest[manifest["split"] == name]
            return list(rows["source"] if "source" in rows else "images.npy/" + rows["index"])


def _check_within(column: str, values: "pd.Series[int]", count: int, what: str) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < count:
        raise ValueError(f"{column} from {values.min()} to {values.max()} in manifest.csv, {count} {what}")

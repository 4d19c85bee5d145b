"""Prepared arrays to batches on the device: uint8 until the Net needs them, normalised on the way to it."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from stages.command import InputError
from stages.workers import Array, Make, Workers

SCORING_BATCH = 1000  # images in a forward pass without gradients, at most
SCORING_VALUES = 1 << 20  # and how many values of them: what the net makes of images takes many times their memory
RESIDENT = 2 << 30  # bytes of a split that is copied to a GPU as a whole

# Images (n, ...), labels (n,) and n seeds to images and targets; transforms.Augment is one.
Augment = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Split:
    """The images of "train", "valid" or "test"; they stay on disk, and in the system's page cache, until taken."""

    images: npt.NDArray[np.uint8]  # (N, h, w) or (N, 3, h, w), of all splits, memory-mapped
    labels: Tensor  # int64 (n,), on the device
    index: Tensor  # int64 (n,), the rows of `images`, on the CPU

    def read(self, places: Tensor | slice) -> Tensor:
        """Return the images at some of the n places of the split, uint8 (m, h, w) or (m, 3, h, w), on the CPU."""
        rows = self.index[places.cpu() if isinstance(places, Tensor) else places]
        return torch.from_numpy(self.images.take(rows.numpy(), axis=0))  # torch has no read-only tensors

    def take(self, places: Tensor | slice) -> Tensor:
        """Return the same on the device of the labels."""
        if self._resident is not None:
            return self._resident[places]
        return self.read(places).to(self.labels.device)

    @cached_property
    def _resident(self) -> Tensor | None:
        """All images of the split on the GPU, if they are few; on the CPU the memory map serves."""
        if self.labels.device.type == "cpu" or len(self.index) * self.images[:1].nbytes > RESIDENT:
            return None
        return self.read(slice(None)).to(self.labels.device)


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, LookupError) as error:
        raise InputError(
            f"{folder} is not a prepared set: {type(error).__name__}: {error}. Make it with dvc repro prepare."
        ) from error


class Facts:
    """What dataset.json says of a prepared set. Raises InputError if it does not."""

    def __init__(self, folder: Path) -> None:
        with _complete(folder):
            self.folder = folder
            facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            self.source: str = facts["source"]
            self.classes: list[str] = facts["classes"]
            self.channels: int = facts["channels"]
            self.image_size: int = facts["image_size"]
            self.mean: list[float] = facts["mean"]
            self.std: list[float] = facts["std"]
            self.sizes: dict[str, int] = facts["sizes"]
            self.sha256: dict[str, str] = facts["sha256"]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (h, w) of grayscale images, (3, h, w) of coloured ones."""
        side = (self.image_size, self.image_size)
        return side if self.channels == 1 else (self.channels, *side)


class Prepared(Facts):
    """The folder that prepare wrote. Raises InputError if it is not complete."""

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
            index=torch.tensor(rows["index"].to_numpy()),
        )


def _check_within(column: str, values: "pd.Series[int]", count: int, what: str) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < count:
        raise ValueError(f"{column} from {values.min()} to {values.max()} in manifest.csv, {count} {what}")


class Normalise(nn.Module):
    """Images (n, h, w) or (n, channels, h, w) to float32 (n, channels, h, w) of mean 0 and deviation 1.

    The images are uint8 from 0 to 255, or float32 from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim == 3:
            images = images.unsqueeze(1)  # the channel of grayscale images
        scaled = images.float() if images.dtype == torch.uint8 else images * 255
        return (scaled - self.mean) / self.std


class Loader:
    """The training's batches, epoch by epoch: the same ones for any number of workers.

    Workers are processes that read and transform images ahead of the training; with 0, the training does it itself.
    They start with the first epoch, and end with the loader.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: Augment | None = None, workers: int = 0
    ) -> None:
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._make = _maker(split, augment) if augment or workers else None
        self._workers = Workers(workers, self._make) if self._make and workers else None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self._split.labels) / self._batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and targets on the device; the last may be smaller.

        The order follows from the seed and `epoch`, and what transforms draw for an image from its place in the order
        too. Without transforms images are uint8 (n, h, w) or (n, 3, h, w), and targets the labels, int64 (n,).
        Raises InputError for images that the transforms refuse, and if a worker dies.
        """
        device = self._split.labels.device
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._split.labels), generator=generator)
        if self._make is None:
            for places in order.to(device).split(self._batch_size):
                yield self._split.take(places), self._split.labels[places]
            return

        seeds = torch.randint(2**63 - 1, (len(order),), generator=generator)
        batches = zip(order.split(self._batch_size), seeds.split(self._batch_size), strict=True)
        tasks = ((places.numpy(), own.numpy()) for places, own in batches)
        for images, targets in self._workers.map(tasks) if self._workers else starmap(self._make, tasks):
            yield images.to(device), targets.to(device)


def _maker(split: Split, augment: Augment | None) -> Make:
    labels = split.labels.cpu()  # workers keep off the GPU

    def make(places: Array, seeds: Array) -> tuple[Tensor, Tensor]:
        """Return images and targets for n places in the split, each with a seed of its own, int64 (n,) both."""
        at = torch.from_numpy(places)
        return (augment or _as_they_are)(split.read(at), labels[at], seeds.tolist())

    return make


def _as_they_are(images: Tensor, labels: Tensor, _seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return images, labels


@torch.no_grad()
def scores(classifier: nn.Module, split: Split) -> Tensor:
    """Return what `classifier` gives for the images of `split` in evaluation mode, float (n, n_classes)."""
    classifier.eval()
    # What a net gets of an image may be larger than the image: the first of the modules are the transforms.
    image = split.take(slice(1))
    values = (classifier[0](image) if isinstance(classifier, nn.Sequential) else image).numel()
    size = min(SCORING_BATCH, max(1, SCORING_VALUES // values))
    found = torch.empty(0)
    for at in range(0, len(split.labels), size):
        part = classifier(split.take(slice(at, at + size)))
        # Into one tensor: small ones that stay among large ones that come and go would break the memory up.
        found = found if at else part.new_empty(len(split.labels), part.shape[1])
        found[at : at + size] = part
    return found

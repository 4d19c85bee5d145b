"""Prepared arrays to batches on the device: uint8 until the Net needs them, normalised on the way to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.command import InputError

SCORING_BATCH = 1000  # images in a forward pass without gradients


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8 (n, h, w)
    labels: Tensor  # int64 (n,)
    index: Tensor  # int64 (n,), the rows of the manifest


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


class Prepared(Facts):
    """The folder that prepare wrote. Raises InputError if it is not complete."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with _complete(folder):
            self._images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            self._manifest = pd.read_csv(folder / "manifest.csv", usecols=["index", "split", "label"])
            if len(self._manifest) != len(self._images):
                raise ValueError(f"{len(self._manifest)} rows in manifest.csv, {len(self._images)} in images.npy")

    def split(self, name: str, device: torch.device) -> Split:
        """Return the images of "train", "valid" or "test"."""
        rows = self._manifest[self._manifest["split"] == name]
        index = rows["index"].to_numpy()
        return Split(
            images=torch.tensor(self._images[index], device=device),
            labels=torch.tensor(rows["label"].to_numpy(), device=device),
            index=torch.tensor(index),
        )


class Normalise(nn.Module):
    """uint8 images (n, h, w), or (n, channels, h, w), to float32 (n, channels, h, w) of mean 0 and deviation 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim == 3:
            images = images.unsqueeze(1)  # the channel of grayscale images
        return (images.float() - self.mean) / self.std


def shuffled(split: Split, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of uint8 images and labels; the last may be smaller. The order follows from `seed` and `epoch`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(split.labels), generator=generator).to(split.labels.device)
    for rows in order.split(batch_size):
        yield split.images[rows], split.labels[rows]


@torch.no_grad()
def scores(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return what `classifier` gives for uint8 `images` in evaluation mode, float (n, n_classes)."""
    classifier.eval()
    return torch.cat([classifier(batch) for batch in images.split(SCORING_BATCH)])

"""Prepared arrays to batches on the device: uint8 until the Net needs them, normalised on the way to it."""

import json
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from stages.command import InputError

SCORING_BATCH = 1000  # images in a forward pass without gradients, at most
SCORING_VALUES = 1 << 22  # and how many values of them: what the net makes of images takes many times their memory
RESIDENT = 2 << 30  # bytes of a split that is copied to a GPU as a whole

# Images (n, ...), labels (n,) and n seeds to images and targets; transforms.Augment is one.
Augment = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]
Array = npt.NDArray[Any]
AHEAD = 2  # batches that each worker has in hand
STOPPING = (signal.SIGINT, signal.SIGTERM)
_of_worker: list["_Made"] = []  # what a worker has had from its start


@dataclass(frozen=True)
class Split:
    """The images of "train", "valid" or "test"; they stay on disk, and in the system's page cache, until taken."""

    images: npt.NDArray[np.uint8]  # (N, h, w) or (N, 3, h, w), of all splits, memory-mapped
    labels: Tensor  # int64 (n,), on the device
    index: Tensor  # int64 (n,), the rows of `images`, on the CPU

    def read(self, places: Tensor | slice) -> Tensor:
        """Return the images at some of the n places of the split, uint8 (m, h, w) or (m, 3, h, w), on the CPU."""
        # numpy, since torch takes read-only arrays with a warning; of arrays it need not write, a set may be larger
        # than memory.
        return torch.from_numpy(self.images.take(self.index[places].numpy(), axis=0))

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
            side = (self.image_size, self.image_size)
            shape = side if self.channels == 1 else (self.channels, *side)
            if self._images.dtype != np.uint8 or self._images.shape[1:] != shape:
                found = f"{self._images.dtype} {self._images.shape[1:]}"
                raise ValueError(f"images of {found} in images.npy, of uint8 {shape} in dataset.json")
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


class _Made:
    """A batch for the places of images in their split, and a seed for each of them, int64 (n,) both."""

    def __init__(self, split: Split, augment: Augment | None) -> None:
        self._split, self._augment = split, augment
        self._labels = split.labels.cpu()  # workers keep off the GPU

    def __call__(self, places: Array, seeds: Array) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(places)
        images, labels = self._split.read(at), self._labels[at]
        return (images, labels) if self._augment is None else self._augment(images, labels, seeds.tolist())


class Loader:
    """The training's batches, epoch by epoch: the same ones for any number of workers.

    Workers are processes that read and transform images ahead of the training; with 0, the training does it itself.
    They start with the first epoch, and end with the loader.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: Augment | None = None, workers: int = 0
    ) -> None:
        self._split, self._batch_size, self._seed, self._workers = split, batch_size, seed, workers
        made = _Made(split, augment or None)
        self._made = made if augment or workers else None
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Forked, since workers of another start would be sent the images.
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(workers, context, _start_worker, (made,))

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
        if self._made is None:
            for places in order.to(device).split(self._batch_size):
                yield self._split.take(places), self._split.labels[places]
            return

        seeds = torch.randint(2**63 - 1, (len(order),), generator=generator)
        # As arrays, which a pipe takes to the workers; each tensor would need a file of shared memory.
        batches = zip(order.split(self._batch_size), seeds.split(self._batch_size), strict=True)
        tasks = ((places.numpy(), own.numpy()) for places, own in batches)
        for images, targets in self._ahead(self._pool, tasks) if self._pool else starmap(self._made, tasks):
            yield images.to(device), targets.to(device)

    def _ahead(
        self, pool: ProcessPoolExecutor, tasks: Iterable[tuple[Array, Array]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what workers make of the tasks, in their order, a few batches ahead of the training."""
        pending: deque[Future[tuple[Array, Array]]] = deque()
        try:
            for task in chain(tasks, [None] * AHEAD * self._workers):
                if task is not None:
                    pending.append(_submit(pool, task))
                if pending and (task is None or len(pending) > AHEAD * self._workers):
                    images, targets = pending.popleft().result()
                    yield torch.from_numpy(images), torch.from_numpy(targets)
        except BrokenProcessPool as error:
            raise InputError(
                f"train.workers: one of the {self._workers} processes that load images was killed, perhaps for want of"
                " memory; with fewer of them, or 0, less is needed"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _submit(pool: ProcessPoolExecutor, task: tuple[Array, Array]) -> "Future[tuple[Array, Array]]":
    # The first call starts the workers. Until they are ready, Ctrl-C would find this process's handlers in them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return pool.submit(_make, *task)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _start_worker(made: _Made) -> None:
    # Whoever stops the training may send the signal to its whole group. Workers that died of it would be an error in
    # the midst of the training's own end, which ends them too; where it was killed and cannot, they end by themselves.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _of_worker.append(made)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(places: Array, seeds: Array) -> tuple[Array, Array]:
    images, targets = _of_worker[0](places, seeds)
    return images.numpy(), targets.numpy()


@torch.no_grad()
def scores(classifier: nn.Module, split: Split) -> Tensor:
    """Return what `classifier` gives for the images of `split` in evaluation mode, float (n, n_classes)."""
    classifier.eval()
    # What a net gets of an image may be larger than the image: the first of the modules are the transforms.
    image = split.take(slice(1))
    values = (classifier[0](image) if isinstance(classifier, nn.Sequential) else image).numel()
    size = min(SCORING_BATCH, max(1, SCORING_VALUES // values))
    return torch.cat([classifier(split.take(slice(at, at + size))) for at in range(0, len(split.labels), size)])

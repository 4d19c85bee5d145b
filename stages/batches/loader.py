"""The training's batches, epoch by epoch, in an order that follows from the seed, and from what shards there are."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from stages.base.workers import Workers
from stages.batches.prepared import Split, on_device
from stages.batches.shards import grouped

# Images (n, ...), labels (n,) and n seeds to images and targets; transforms.TrainTransforms is one.
Augment = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]
Part = Callable[[Tensor], Tensor]  # of the places of a batch's images, int64 (n,)
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


class Loader:
    """The batches of a split for training: the same ones for any number of workers.

    Workers are processes that read and transform images ahead of the training; with 0, the training does it itself.
    They start with the first epoch, and end with the loader.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        workers: int = 0,
        is_balanced: bool = False,
        overfit: int | None = None,
        part: Part | None = None,
        is_mixed: bool = False,
    ) -> None:
        """If `is_balanced`, the images of an epoch are drawn, of all classes alike, and some more than once.

        With `overfit`, it is the same few images over and over. `part` takes those of a batch that this process is to
        have; if `augment` mixes them, all are made before.
        """
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._is_balanced, self._overfit, self._n_workers = is_balanced, overfit, workers
        before, after = (_all, part or _all) if is_mixed else (part or _all, _all)
        self._part = before
        make = partial(_batch, split, split.labels.cpu(), augment or _unchanged, after)  # workers keep off the GPU
        killed = (
            f"train.workers: one of the {workers} processes that load images was killed, perhaps because memory is"
            " full; fewer of them, or 0, need less"
        )
        self._workers: Workers[Arrays, Arrays] | None = Workers(make, workers, killed) if augment or workers else None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self._split.labels) / self._batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and targets on the device, without the first `start`; the last may be smaller.

        The order follows from the seed and `epoch`, and what transforms draw for an image from its place in the order
        too. Without transforms images are uint8 (n, h, w) or (n, 3, h, w), and targets the labels, int64 (n,).
        Raises InputError for images that the transforms refuse, and if a worker is killed.
        """
        device = self._split.labels.device
        generator = self._generator(epoch)
        order = self._order(generator)
        needed = order
        if reach := self._split.reach:  # the end of an epoch lets be fetched what the next one begins with
            needed = torch.cat([order, self._order(self._generator(epoch + 1))[:reach]])
        if self._workers is None:
            # On the CPU for what is read there, and on the device: to fetch them from a GPU would be to wait for it.
            ours, theirs = (indices.split(self._batch_size)[start:] for indices in (order, order.to(device)))
            parts = zip(map(self._part, ours), map(self._part, theirs), strict=True)
            for number, (indices, there) in enumerate(parts, start):
                self._look_ahead(needed, number)
                yield self._split.take(indices, there), self._split.labels[there]
            return

        seeds = torch.randint(2**63 - 1, (len(order),), generator=generator)
        batches = zip(order.split(self._batch_size)[start:], seeds.split(self._batch_size)[start:], strict=True)
        tasks = [(self._part(indices).numpy(), self._part(own).numpy()) for indices, own in batches]
        if not tasks and self._split.reach:
            # A training goes on from the end of an epoch: the forks come before the threads that fetch for validation.
            list(self._workers.map([(order[:0].numpy(), order[:0].numpy())] * self._n_workers))
        for number, (images, targets) in enumerate(self._workers.map(tasks), start):
            self._look_ahead(needed, number)
            yield on_device(torch.from_numpy(images), device), on_device(torch.from_numpy(targets), device)

    def _look_ahead(self, needed: Tensor, number: int) -> None:
        """Let be fetched what a batch needs that comes one group of shards after this one."""
        if self._split.reach:
            at = number * self._batch_size + self._split.reach
            self._split.ahead(needed[at : at + self._batch_size])

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the places in the split of an epoch's images, int64 (n,)."""
        n = len(self._split.labels)
        if self._overfit:
            own = torch.Generator().manual_seed(self._seed)
            few = self._by_shards(torch.randperm(n, generator=own), own)[: self._overfit]
            return few.repeat(math.ceil(n / len(few)))[:n]
        if self._is_balanced:
            return self._by_shards(drawn(self._split.labels.cpu(), generator), generator)
        return self._by_shards(torch.randperm(n, generator=generator), generator)

    def _by_shards(self, order: Tensor, generator: torch.Generator) -> Tensor:
        shards = self._split.shards
        return order if shards is None else grouped(order, shards, generator)


def drawn(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many places of labels, int64 (n,), as there are: each of a class that is drawn, and in it an image."""
    by_class, counts = labels.argsort(stable=True), labels.bincount()
    starts, there = counts.cumsum(0) - counts, counts.nonzero().flatten()
    classes = there[torch.randint(len(there), labels.shape, generator=generator)]
    shares = torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    return by_class[starts[classes] + (shares * counts[classes]).long()]


def _batch(split: Split, labels: Tensor, augment: Augment, part: Part, task: Arrays) -> Arrays:
    """Return images and targets for the indices of n images in the split and a seed for each, int64 (n,) both."""
    indices = torch.from_numpy(task[0])
    images, targets = split.read(indices), labels[indices]
    if len(indices):
        images, targets = augment(images, targets, task[1].tolist())
    if part is not _all:
        own = part(torch.arange(len(images)))
        images, targets = images[own], targets[own]
    return images.numpy(), targets.numpy()


def _all(indices: Tensor) -> Tensor:
    return indices


def _unchanged(images: Tensor, labels: Tensor, _seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return images, labels

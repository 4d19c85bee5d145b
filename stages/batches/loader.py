"""The training's batches, epoch by epoch: torch's DataLoader, over an order that follows from the seed alone."""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from traceback import format_exc
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.base.errors import InputError
from stages.base.processes import leave_signals_to_parent, signals_held
from stages.batches.prepared import Split

# Images (n, ...), labels (n,) and n seeds to images and targets; transforms.TrainTransforms is one.
Augment = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]
# As arrays, which go through pipes: each tensor would need a file of shared memory, of which some machines have little.
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


class Loader:
    """The batches of a split for training: the same ones for any number of workers.

    Workers are processes that read and transform images ahead of the training; with 0, the training does it itself.
    They start with the first epoch, and end with the loader.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: Augment | None = None, workers: int = 0
    ) -> None:
        self._split, self._batch_size, self._seed, self._workers = split, batch_size, seed, workers
        self._order = _Order()
        self._loader = (
            DataLoader(
                _Batches(split, augment or _unchanged),
                batch_size=None,  # the order names whole batches
                sampler=self._order,
                num_workers=workers,
                collate_fn=_unchanged_arrays,  # which would make tensors of them
                multiprocessing_context="fork" if workers else None,  # others would be sent all that the dataset holds
                persistent_workers=workers > 0,
                worker_init_fn=_leave_signals,
                generator=torch.Generator(),  # by default it would draw from the global one, which dropout uses
            )
            if augment or workers
            else None
        )

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
        if self._loader is None:
            for indices in order.to(device).split(self._batch_size):
                yield self._split.take(indices), self._split.labels[indices]
            return

        seeds = torch.randint(2**63 - 1, (len(order),), generator=generator)
        batches = zip(order.split(self._batch_size), seeds.split(self._batch_size), strict=True)
        self._order.batches = [(indices.numpy(), own.numpy()) for indices, own in batches]
        # Until workers are ready, Ctrl-C would find this process's handlers in them.
        with signals_held():
            made = iter(self._loader)
        if self._workers:
            # torch's own handler would raise wherever the training is when a worker dies; now the iterator does.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for images, targets in self._results(made):
            yield torch.from_numpy(images).to(device), torch.from_numpy(targets).to(device)

    def _results(self, made: Iterator[Arrays | Exception]) -> Iterator[Arrays]:
        """Yield what was made; raise what making it raised, and InputError if a worker died."""
        while True:
            try:
                result = next(made, None)
            except RuntimeError as error:  # what making a batch raises comes as a value, so it is torch that raises
                raise InputError(
                    f"train.workers: one of the {self._workers} processes that load images was killed, perhaps for"
                    " want of memory; with fewer of them, or 0, less is needed"
                ) from error
            if result is None:
                return
            if isinstance(result, Exception):
                raise result
            yield result


class _Order(Sampler[Arrays]):
    """The batches of an epoch: for each the indices of its images in the split and their seeds, int64 (n,) both."""

    batches: Sequence[Arrays] = ()

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Batches(Dataset[Arrays | Exception]):
    """What runs in the workers: an entry of the order to the images and targets of the batch."""

    def __init__(self, split: Split, augment: Augment) -> None:
        self._split, self._augment = split, augment
        self._labels = split.labels.cpu()  # workers keep off the GPU

    def __getitem__(self, batch: Arrays) -> Arrays | Exception:
        indices, seeds = torch.from_numpy(batch[0]), batch[1].tolist()
        try:
            images, targets = self._augment(self._split.read(indices), self._labels[indices], seeds)
        except Exception as error:  # as a value: raised here, it would arrive as another, whose text is a traceback
            if not isinstance(error, InputError):
                error.add_note(format_exc())
            return error
        return images.numpy(), targets.numpy()


def _unchanged(images: Tensor, labels: Tensor, _seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return images, labels


def _unchanged_arrays(made: Any) -> Any:
    return made


def _leave_signals(_worker: int) -> None:
    leave_signals_to_parent()

"""Processes that make batches ahead of the training, in the order that it wants them."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from stages.command import InputError, leave_signals_to_parent, signals_held

AHEAD = 2  # batches that each worker has in hand

# Arrays go through pipes; each tensor would need a file of shared memory, of which some machines have little.
Array = npt.NDArray[Any]
Pair = tuple[Array, Array]
Make = Callable[[Array, Array], tuple[Tensor, Tensor]]


class Workers:
    """`count` processes, each with a copy of `make`; they start with the first task, and end with this object."""

    def __init__(self, count: int, make: Make) -> None:
        # Forked, since processes of another start would be sent all that `make` holds.
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _start, (make,))
        self._count = count

    def map(self, tasks: Iterable[Pair]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `make` of each task, in their order. Raises what it raises, and InputError if a worker dies."""
        pending: deque[Future[Pair]] = deque()
        try:
            for task in tasks:
                pending.append(self._submit(task))
                if len(pending) > AHEAD * self._count:
                    yield _tensors(pending.popleft())
            while pending:
                yield _tensors(pending.popleft())
        except BrokenProcessPool as error:
            raise InputError(
                f"train.workers: one of the {self._count} processes that load images was killed, perhaps for want of"
                " memory; with fewer of them, or 0, less is needed"
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def _submit(self, task: Pair) -> Future[Pair]:
        # The first call starts the workers. Until they are ready, Ctrl-C would find this process's handlers in them.
        with signals_held():
            return self._pool.submit(_arrays, *task)


def _tensors(future: Future[Pair]) -> tuple[Tensor, Tensor]:
    images, targets = future.result()
    return torch.from_numpy(images), torch.from_numpy(targets)


# The rest runs in the workers.
_make: list[Make] = []


def _start(make: Make) -> None:
    # Whoever stops the training may send the signal to its whole group. Workers that died of it would be an error in
    # the midst of the training's own end, which ends them too; where it was killed and cannot, they end by themselves.
    os.setpgid(0, 0)
    leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _make.append(make)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _arrays(places: Array, seeds: Array) -> Pair:
    images, targets = _make[0](places, seeds)
    return images.numpy(), targets.numpy()

"""Processes that work ahead of this one: torch's DataLoader, as an engine for any function."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from traceback import format_exc
from typing import Any, Generic, TypeVar

from stages.base.errors import InputError
from stages.base.processes import leave_signals_to_parent, signals_held

# Where forks are safe: they need not be sent what the function holds. macOS's own libraries do not survive them.
START = "fork" if sys.platform == "linux" else "spawn"

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Generic[Task, Result]):
    """At most `count` processes that apply `function` to tasks; with 0, this process does it itself.

    They start with the first task, and end with `end`, with this object, or with this process. Tasks and results go
    through pipes: arrays do so at once, while each tensor would need a file of shared memory, of which some machines
    have little. Where they are no forks (see START), they get `function` pickled. `killed` is what to say if one of the
    processes is killed.
    """

    def __init__(self, function: Callable[[Task], Result], count: int, killed: str) -> None:
        self._function, self._count, self._killed = function, count, killed
        self._tasks: list[Task] = []
        self._processes: set[BaseProcess] = set()
        self._loader: Any = None

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the result of each task, in their order. Raises what `function` raises, or InputError(killed)."""
        if self._count == 0 or not tasks:
            yield from map(self._function, tasks)
            return
        self._tasks[:] = tasks
        for result in self._results():
            if isinstance(result, Exception):
                raise result
            yield result

    def end(self) -> None:
        """End the processes at once: by itself, the DataLoader would wait for the tasks that they have begun."""
        for process in self._processes:
            process.terminate()
            process.join()

    def _results(self) -> Iterator[Any]:
        """Yield for each task a result, or the error that there was instead."""
        results = None if self._loader else self._start()
        try:
            yield from iter(self._loader) if results is None else results
        except RuntimeError as error:  # what the function raises comes as a value, so it is torch that raises
            raise InputError(self._killed) from error

    def _start(self) -> Iterator[Any]:
        import torch  # 1.4 s, for which a stage that needs no processes does not wait
        from torch.utils.data import DataLoader

        applied: Any = _Applied(self._function)
        before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
        # Until a process is ready, Ctrl-C would find this one's handlers in it.
        with signals_held(), warnings.catch_warnings(action="ignore"):  # of more processes than cores
            self._loader = DataLoader(
                applied,
                batch_size=None,  # a task is what torch calls a batch
                sampler=self._tasks,
                # No more than tasks: torch's end starts a thread for a queue that never had one, while the garbage
                # collector may be closing its pipe.
                num_workers=min(self._count, len(self._tasks)),
                collate_fn=_unchanged,  # by default it would make tensors of the results
                multiprocessing_context=START,
                persistent_workers=True,
                worker_init_fn=_leave_signals,
                generator=torch.Generator(),  # by default it would draw from the global one, which dropout uses
            )
            try:
                results: Iterator[Any] = iter(self._loader)
            finally:
                self._processes = set(multiprocessing.active_children()) - before
                # torch's handler would raise at an arbitrary line of this process when another one is killed. It is not
                # needed: the iterator notices that, too, within 5 s. (None is a handler that was not set by Python.)
                signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        return results


class _Applied:
    """What runs in the processes."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, task: Any) -> Any:
        # Errors are returned: raised here, one would arrive as another, or not at all if it cannot be pickled.
        try:
            return self._function(task)
        except InputError as error:
            return error
        except Exception:
            return RuntimeError(format_exc())


def _unchanged(result: Any) -> Any:
    return result


def _leave_signals(_number: int) -> None:
    leave_signals_to_parent()
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler would say that shared memory is full

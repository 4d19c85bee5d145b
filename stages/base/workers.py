"""Processes that work ahead of this one: torch's DataLoader, as an engine for any function."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from traceback import format_exc
from typing import Any, Generic, TypeVar

from stages.base.errors import InputError
from stages.base.processes import leave_signals_to_parent, signals_held

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Generic[Task, Result]):
    """`count` processes that apply `function` to tasks; with 0, this process does it itself.

    They start with the first task, and end with `end`, with this object, or with this process. Tasks and results go
    through pipes: arrays do so at once, while each tensor would need a file of shared memory, of which some machines
    have little. `killed` is what to say if one of the processes is killed.
    """

    def __init__(self, function: Callable[[Task], Result], count: int, killed: str) -> None:
        import torch  # 1.4 s, for which a stage that needs no processes does not wait
        from torch.utils.data import DataLoader

        self._tasks, self._killed, self._before = _Tasks(), killed, set(multiprocessing.active_children())
        applied: Any = _Applied(function)
        self._loader: DataLoader[Any] = DataLoader(
            applied,
            batch_size=None,  # a task is what torch calls a batch
            sampler=self._tasks,
            num_workers=count,
            collate_fn=_unchanged,  # by default it would make tensors of the results
            multiprocessing_context="fork" if count else None,  # others would be sent all that the function holds
            persistent_workers=count > 0,
            worker_init_fn=_start,
            generator=torch.Generator(),  # by default it would draw from the global one, which dropout uses
        )

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the result of each task, in their order. Raises what `function` raises, or InputError(killed)."""
        self._tasks.tasks = tasks
        handler = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
        with signals_held():  # until a process is ready, Ctrl-C would find this one's handlers in it
            results = iter(self._loader)
            # torch's own handler would raise anywhere in this process when another one dies; so the iterator does.
            signal.signal(signal.SIGCHLD, handler)
        for _ in tasks:
            try:
                result = next(results)
            except RuntimeError as error:  # what the function raises comes as a value, so it is torch that raises
                raise InputError(self._killed) from error
            if isinstance(result, Exception):
                raise result
            yield result

    def end(self) -> None:
        """End the processes at once: by itself, the DataLoader would wait for the tasks that they have begun."""
        for process in set(multiprocessing.active_children()) - self._before:
            process.terminate()
            process.join()


class _Tasks:
    tasks: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tasks)


class _Applied:
    """What runs in the processes."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, task: Any) -> Any:
        try:
            return self._function(task)
        except Exception as error:  # as a value: raised here, it would arrive as another, whose text is a traceback
            if not isinstance(error, InputError):
                error.add_note(format_exc())
            return error


def _unchanged(result: Any) -> Any:
    return result


def _start(_number: int) -> None:
    leave_signals_to_parent()
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler would say that shared memory is full

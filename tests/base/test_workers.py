"""Processes that work ahead: order, errors, and what becomes of them when one is killed."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from stages.base.errors import InputError
from stages.base.workers import Workers


class LocalError(Exception):
    """An error that cannot be pickled: it takes two arguments and keeps one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def square(number: int) -> int:
    if number == 13:
        raise InputError("13 is refused")
    if number == 17:
        raise LocalError("seven", "teen")
    return number**2


@pytest.fixture(params=["fork", "spawn"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers[int, int]]:
    monkeypatch.setattr("stages.base.workers.START", request.param)
    made = Workers(square, 2, "one of them was killed")
    yield made
    made.end()


def test_results_come_in_the_order_of_the_tasks(workers: Workers[int, int]) -> None:
    assert list(workers.map(range(10))) == [n**2 for n in range(10)]
    before = set(psutil.Process().children())
    assert list(workers.map(range(5, 8))) == [25, 36, 49]
    assert set(psutil.Process().children()) == before, "the same processes go on"


def test_an_input_error_arrives_as_it_is(workers: Workers[int, int]) -> None:
    with pytest.raises(InputError, match=r"^13 is refused$"):
        list(workers.map([12, 13]))


def test_another_error_arrives_with_its_traceback(workers: Workers[int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in square.*LocalError: seventeen"):
        list(workers.map([17]))


def test_one_that_is_killed_between_two_rounds_is_an_error(workers: Workers[int, int]) -> None:
    list(workers.map(range(4)))
    [first, _] = [psutil.Process(process.pid) for process in workers._processes]
    os.kill(first.pid, signal.SIGKILL)
    while first.status() != psutil.STATUS_ZOMBIE:  # not psutil's wait, which would hide from torch that it has ended
        time.sleep(0.01)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"^one of them was killed$"):
        list(workers.map(range(4)))
    assert time.monotonic() - started < 20


def test_the_end_ends_these_processes_and_no_others(workers: Workers[int, int]) -> None:
    other = Workers(square, 1, "")
    list(other.map([1]))
    list(workers.map([1]))
    workers.end()
    assert list(other.map([3])) == [9]
    other.end()


def test_fewer_tasks_than_processes(capfd: pytest.CaptureFixture[str]) -> None:
    before, threads = set(psutil.Process().children()), set(threading.enumerate())
    for _ in range(10):
        made = Workers(square, 8, "")
        assert list(made.map([])) == []
        assert list(made.map([3])) == [9]
        assert len(set(psutil.Process().children()) - before) == 1
        assert list(made.map([4, 5, 6])) == [16, 25, 36]
        made.end()
        cycle: list[object] = [made]
        cycle.append(cycle)
        del made, cycle
        gc.collect()  # in the midst of which torch ends what it has started
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=20)
    assert capfd.readouterr().err == ""


def test_without_processes_any_thread_may_work() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(Workers(square, 0, "").map([1, 2, 3])))
    thread.start()
    thread.join()
    assert found == [1, 4, 9]
    with pytest.raises(LocalError):
        list(Workers(square, 0, "").map([17]))

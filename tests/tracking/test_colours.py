"""Colours of runs: those of an experiment differ, however they came into the store."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

from stages.tracking.colours import COLOURS, TAG, least_used
from stages.tracking.store import Store


def test_the_first_that_nobody_has_and_then_the_least_used() -> None:
    assert least_used([]) == COLOURS[0]
    assert least_used(["#123456", COLOURS[0], COLOURS[2]]) == COLOURS[1]
    assert least_used([*COLOURS, COLOURS[0], COLOURS[1]]) == COLOURS[2]


def test_colours_are_not_alike() -> None:
    def distance(one: str, other: str) -> int:
        parts = [(int(one[i : i + 2], 16) - int(other[i : i + 2], 16)) ** 2 for i in (1, 3, 5)]
        return sum(parts)

    assert min(distance(*pair) for pair in combinations(COLOURS, 2)) > 60**2


def test_runs_that_start_at_once_or_come_late_differ(tmp_path: Path) -> None:
    """Each has a store of its own, as processes have; half of them are of long ago, as those of tools.sync."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Store(uri, "repronet").client()

    def create(number: int) -> str:
        run = Store(uri, "repronet").create_run(f"run-{number}", {"a": "b"}, number if number % 2 else None)
        assert run.data.tags["a"] == "b"
        return str(run.data.tags[TAG])

    with ThreadPoolExecutor(6) as several:
        given = list(several.map(create, range(len(COLOURS))))
    assert sorted(given) == sorted(COLOURS)
    assert create(len(COLOURS)) in COLOURS

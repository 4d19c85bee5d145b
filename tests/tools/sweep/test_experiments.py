"""The states of an experiment."""

from itertools import product

import pytest

from tests.tools.sweep.conftest import experiment
from tools.sweep.experiments import NEXT_STATES, Ending, Metrics, State, ranked


@pytest.mark.parametrize(("state", "following"), list(product(State, State)))
def test_only_some_states_follow_each_other(state: State, following: State) -> None:
    changed = experiment("a")
    changed.state = state
    if following in NEXT_STATES[state]:
        changed.change(following)
        assert changed.state is following
    else:
        with pytest.raises(ValueError, match=f"^a is {state} and cannot become {following}$"):
            changed.change(following)
        assert changed.state is state


def test_attempts_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tried = experiment("a")
    tried.change(State.RUNNING)
    tried.epochs, now[0] = 3, 104.0
    tried.end(Ending(State.FAILED, "the loss is nan"))
    assert (tried.attempts, tried.started, tried.seconds) == (1, 100.0, 4.0)
    assert tried.ending == Ending(State.FAILED, "the loss is nan")
    tried.change(State.WAITING)
    tried.change(State.RUNNING)
    assert (tried.attempts, tried.epochs, tried.started) == (2, 0, 104.0)


def test_the_best_comes_first_and_of_equal_ones_that_with_the_lower_loss() -> None:
    metrics = {"low": Metrics(0.8, 0.1, 1.0), "late": Metrics(0.9, 0.3, 0.1), "best": Metrics(0.9, 0.2, 0.0)}
    experiments = [experiment("waits"), *map(experiment, metrics)]
    for done in experiments[1:]:
        done.end(Ending(State.DONE, metrics=metrics[done.name]))
    assert [(found.name, figures) for found, figures in ranked(experiments)] == [
        ("best", metrics["best"]),
        ("late", metrics["late"]),
        ("low", metrics["low"]),
    ]


def test_experiments_that_share_prepared_data() -> None:
    overrides = ["train.seed=1", "prepare.seed=2", "+prepare.csv.file=a"]
    assert experiment("a", overrides=overrides).prepared == ("prepare.seed=2", "+prepare.csv.file=a")

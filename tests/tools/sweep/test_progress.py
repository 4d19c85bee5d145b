"""What a sweep shows."""

import pytest

from tests.tools.sweep.conftest import experiment
from tools.sweep.experiments import Ending, Experiment, Metrics, State
from tools.sweep.progress import Progress, report


def done(name: str, number: int, valid: float, **values: str) -> Experiment:
    found = experiment(name, number, **values)
    found.end(Ending(State.DONE, metrics=Metrics(valid, 0.1, valid - 0.1)))
    return found


def failed(name: str, number: int, **values: str) -> Experiment:
    found = experiment(name, number, **values)
    found.change(State.RUNNING)
    found.end(Ending(State.FAILED, "the loss is nan"))
    return found


def test_the_summary_counts_and_foretells() -> None:
    experiments = [done("a", 0, 0.8), done("b", 1, 0.9), failed("c", 2), experiment("d", 3)]
    experiments[1].seconds = 40
    experiments[3].change(State.RUNNING)
    assert Progress("s", 6, 2, experiments).summary() == (
        "sweep s: 2 of 6 done, 1 running, 1 failed, best b with validation accuracy 0.9000, about 0:01:00 left"
    )


def test_the_report_has_the_best_mean_first(capsys: pytest.CaptureFixture[str]) -> None:
    experiments = [
        done("a-1", 0, 0.8, lr="1"),
        done("a-2", 0, 0.9, lr="1"),
        done("b-1", 1, 0.89, lr="2"),
        done("b-2", 1, 0.88, lr="2"),
        done("c-1", 2, 0.99, lr="3"),
        failed("c-2", 2, lr="3"),
    ]
    assert report("s", experiments) == "b-1", "what lacks a seed is not called the best"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["2", "2", "0.8850", "±", "0.0635", "0.7850", "±", "0.0635"]
    assert lines[3] == ["1", "2", "0.8500", "±", "0.6353", "0.7500", "±", "0.6353"]
    assert lines[4] == ["3", "1", "0.9900", "0.8900"]
    assert lines[5] == ["failed:", "c-2", "the", "loss", "is", "nan"]
    assert ["dvc", "exp", "apply", "b-1"] in lines


def test_with_other_data_there_is_no_best(capsys: pytest.CaptureFixture[str]) -> None:
    experiments = [done(source, i, 0.8, **{"prepare.source": source}) for i, source in enumerate(("digits", "folder"))]
    assert report("s", experiments) is None
    output = capsys.readouterr().out
    assert "No best one is named: experiments with other data were validated on other images." in output
    assert "dvc exp apply" not in output

"""Params as MLflow keeps them, and how they are compared."""

from stages.tracking.params import as_logged, values


def test_a_number_is_the_same_however_it_is_written() -> None:
    before = as_logged({"train.checkpoint_minutes": 10.0, "train.epochs": 3, "prepare.source": "digits"})
    now = as_logged({"train.checkpoint_minutes": 10, "train.epochs": 3, "prepare.source": "digits"})
    assert before != now
    assert values(before) == values(now)
    assert values(before) != values(now | {"train.epochs": "4"})


def test_what_is_no_number_is_its_text() -> None:
    params = as_logged({"a": "nan", "b": "01", "c": True, "d": None, "e": [1.0], "f": "Infinity", "g": "1_0"})
    assert values(params) == params

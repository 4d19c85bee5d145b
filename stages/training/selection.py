"""The rule that picks: the best epoch of a training, the best of several trainings, and when no better one comes."""

from collections.abc import Mapping
from typing import Any


def rank(valid_accuracy: float, valid_loss: float) -> tuple[float, float]:
    """Return the key to sort by, the best last: validation accuracy, and of equal ones the lower validation loss."""
    return valid_accuracy, -valid_loss


def rank_of(row: Mapping[Any, float], monitor: str = "accuracy") -> tuple[float, ...]:
    """Return the rank of an epoch by its row of the history: by the monitored figure, and of equal ones by `rank`."""
    figure = -row["valid/loss"] if monitor == "loss" else row[f"valid/{monitor}"]
    return figure, *rank(row["valid/accuracy"], row["valid/loss"])


def should_stop(epoch: int, best: int, patience: int | None) -> bool:
    """Return whether `patience` epochs have passed since the best one; None: never."""
    return patience is not None and epoch - best >= patience

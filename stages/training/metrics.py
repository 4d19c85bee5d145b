"""What is measured of a classifier: pure functions of tensors. METRICS lists those of the test images."""

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.registry import check_table

RECENT = 24  # losses that are kept, more than are read at once


class EpochTotals:
    """Loss and accuracy of an epoch, added up batch by batch.

    What a batch adds stays on its device until a figure is asked for: who reads one waits for the device.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.clear()

    def clear(self) -> None:
        self._unread: list[tuple[Tensor, Tensor, int]] = []
        self._loss, self._hits, self._images = 0.0, 0, 0

    def add(self, loss: Tensor, scores: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss, scores, float (n, n_classes), and labels, int64 (n,) or shares of the classes."""
        self._unread.append((loss.detach(), hits(scores, targets), len(targets)))

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added up."""
        return {"recent": self.recent, "sums": [self._loss, self._hits, self._images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._recent.extend(state["recent"])
        self._loss, self._hits, self._images = state["sums"]

    @property
    def recent(self) -> list[float]:
        """The last losses, across epochs."""
        self._read()
        return list(self._recent)

    @property
    def loss(self) -> float:
        self._read()
        return self._loss / self._images

    @property
    def accuracy(self) -> float:
        self._read()
        return self._hits / self._images

    def _read(self) -> None:
        for loss, right, n in self._unread:
            self._recent.append(loss.item())
            self._loss += self._recent[-1] * n
            self._hits += int(right)
            self._images += n
        self._unread.clear()


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of equal entries of two int64 (n,)."""
    return int((predicted == labels).sum()) / len(labels)


def hits(scores: Tensor, targets: Tensor) -> Tensor:
    """Return for how many images the highest of `scores`, float (n, n_classes), is the target's class: int64 ().

    `targets` are labels, int64 (n,), or shares of the classes, float (n, n_classes), of which the largest counts.
    """
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    return (scores.argmax(1) == labels).sum()


def confusion(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return int64 (n_classes, n_classes): how many images of the row's class were predicted as the column's."""
    return torch.bincount(labels * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)


@dataclass(frozen=True)
class PerClass:
    """float64 or int64 (n_classes,) each. Where a ratio's denominator is 0, the ratio is 0, as in scikit-learn."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    correct: Tensor
    total: Tensor
    predicted: Tensor


def per_class(confusion: Tensor) -> PerClass:
    """Return precision, recall, F1 and counts of each class from a confusion matrix (rows: actual)."""
    correct, total, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        return part.double() / whole.clamp(min=1)

    return PerClass(
        precision=ratio(correct, predicted),
        recall=ratio(correct, total),
        f1=ratio(2 * correct, total + predicted),
        correct=correct,
        total=total,
        predicted=predicted,
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    """Return by how much confidence and accuracy differ, 0 to 1, averaged over bins of confidence by their images.

    `probabilities` is float (n, n_classes), `labels` int64 (n,). Bins are of equal width, open on the left: Guo et
    al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    confidence, predicted = probabilities.double().max(1)
    surplus = confidence - (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, surplus)
    return (gaps.abs().sum() / len(labels)).item()


@dataclass(frozen=True)
class Answers:
    """What a classifier says of n images, on the CPU."""

    labels: Tensor  # int64 (n,)
    predicted: Tensor  # int64 (n,)
    probabilities: Tensor  # float (n, n_classes), the softmax of the scores
    are_probabilities: bool  # whether the loss makes them so: others' mean nothing but their order
    bins: int  # of the calibration error

    @cached_property
    def confusion(self) -> Tensor:
        """How many images of the row's class were predicted as the column's, int64 (n_classes, n_classes)."""
        return confusion(self.predicted, self.labels, self.probabilities.shape[1])

    @cached_property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and counts of each class."""
        return per_class(self.confusion)


def area_under_roc(shares: Tensor, labels: Tensor) -> float:
    """Return how probable it is that a class's image has a larger share of it than another's, averaged over classes.

    `shares` are float (n, n_classes), `labels` int64 (n,); equal shares count half. One class against the rest, after
    Fawcett, "An introduction to ROC analysis", 2006, section 9. Classes without images, or without others, are left
    out; NaN if all are.
    """
    areas = []
    for label, of_class in enumerate(shares.double().T):
        is_one = labels == label
        ones, others = int(is_one.sum()), int((~is_one).sum())
        if ones and others:
            _, place, count = of_class.unique(return_inverse=True, return_counts=True)
            ranks = (count.cumsum(0) - (count - 1) / 2)[place]  # of equal ones the middle of theirs
            areas.append((ranks[is_one].sum().item() - ones * (ones + 1) / 2) / (ones * others))
    return float(sum(areas) / len(areas)) if areas else math.nan


# Of the test images, by the name in evaluate.json; MLflow has it as test/NAME.
METRICS: dict[str, Callable[[Answers], float]] = {
    "accuracy": lambda answers: accuracy(answers.predicted, answers.labels),
    "auroc": lambda answers: area_under_roc(answers.probabilities, answers.labels),
    "ece": lambda answers: expected_calibration_error(answers.probabilities, answers.labels, answers.bins),
    "macro_f1": lambda answers: answers.per_class.f1.mean().item(),
}

OF_PROBABILITIES = ("ece",)


def monitored(name: str, scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the figure of validation that is monitored, for the history, where that has not got it anyway.

    `scores` are float (n, n_classes), `labels` int64 (n,), both on the CPU.
    """
    if name in ("accuracy", "loss"):
        return {}
    return {f"valid/{name}": METRICS[name](Answers(labels, scores.argmax(1), scores.softmax(1), False, bins=1))}


def measured(answers: Answers, taken: Collection[str] = ()) -> dict[str, float]:
    """Return the figure of each of METRICS; of those that measure probabilities where the answers have some.

    Raises InputError for what is no metric, or whose name is `taken`.
    """
    place = "METRICS in stages/training/metrics.py"
    check_table(place, METRICS, by_name=False, taken=taken)
    left_out = () if answers.are_probabilities else OF_PROBABILITIES
    figures = {name: metric(answers) for name, metric in METRICS.items() if name not in left_out}
    for name, figure in figures.items():
        if not isinstance(figure, int | float) or not math.isfinite(figure):
            raise InputError(f"{place}: {name!r} gives {figure!r}, should be a finite number")
    return figures

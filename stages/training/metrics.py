"""What is measured of a classifier: pure functions of tensors. METRICS lists those of the test images."""

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.registry import check_table
from stages.training import calibration
from stages.training.curves import Curve, curve, mean

MOST_TOP = 5  # of top5: among so few classes the label always is
RECENT = 24  # losses that are kept, more than are read at once


@dataclass(frozen=True)
class Step:
    """What a step has shown."""

    loss: Tensor  # float (), the mean over its images
    hits: Tensor  # (), how many images were right
    images: int | Tensor  # how many there were


def step(batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Step:
    """Return what a step's batches have shown, one or more.

    Each is its mean loss, scores, float (n, n_classes), and labels, int64 (n,) or shares of the classes.
    """
    loss, scores, targets = batches[0]
    if len(batches) > 1:
        scores, targets = (torch.cat([batch[place] for batch in batches]) for place in (1, 2))
        loss = torch.stack([loss * (len(own) / len(targets)) for loss, _, own in batches]).sum()
    return Step(loss, hits(scores, targets), len(targets))


class EpochTotals:
    """Loss and accuracy of an epoch, added up batch by batch.

    What a batch adds stays on its device until a figure is asked for: who reads one waits for the device.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.clear()

    def clear(self) -> None:
        self._unread: list[Step] = []
        self._loss, self._hits, self._images = 0.0, 0, 0

    def add(self, step: Step) -> Tensor:
        """Add a step, and return its loss."""
        self._unread.append(step)
        return step.loss

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
        for step in self._unread:
            n = int(step.images)
            self._recent.append(step.loss.item())
            self._loss += self._recent[-1] * n
            self._hits += int(step.hits)
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


def kappa(confusion: Tensor) -> float:
    """Return how far the answers of a confusion matrix agree with the labels beyond chance: 1 fully, 0 not at all.

    Cohen, "A coefficient of agreement for nominal scales", 1960; 0 where chance alone would always agree.
    """
    shares = confusion.double() / confusion.sum()
    chance = (shares.sum(0) * shares.sum(1)).sum().item()
    return (shares.diag().sum().item() - chance) / (1 - chance) if chance < 1 else 0.0


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return the squared distance of the probabilities, float (n, n_classes), from the labels, int64 (n,): 0 to 2.

    Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    exact = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities.double() - exact).square().sum(1).mean().item()


def top(n: int, probabilities: Tensor, labels: Tensor) -> float:
    """Return of how many images the label is among the `n` most probable classes, 0 to 1."""
    return (probabilities.topk(n).indices == labels[:, None]).any(1).double().mean().item()


@dataclass(frozen=True)
class Answers:
    """What a classifier says of n images, on the CPU."""

    labels: Tensor  # int64 (n,)
    predicted: Tensor  # int64 (n,)
    probabilities: Tensor  # float (n, n_classes), the softmax of the scores
    are_probabilities: bool  # whether the loss makes them so: others' mean nothing but their order
    bins: int  # of the calibration error

    @property
    def n_classes(self) -> int:
        return self.probabilities.shape[1]

    @cached_property
    def confusion(self) -> Tensor:
        """How many images of the row's class were predicted as the column's, int64 (n_classes, n_classes)."""
        return confusion(self.predicted, self.labels, self.n_classes)

    @cached_property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and counts of each class."""
        return per_class(self.confusion)

    def curve(self, label: int) -> Curve | None:
        """Return the curve of a class, None where no image or every one is of it."""
        return curve(self.probabilities[:, label], self.labels == label)

    @cached_property
    def areas(self) -> list[tuple[float, float]]:
        """Of each class the area under the ROC curve and the average precision; NaN where it has no curve."""
        curves = map(self.curve, range(self.n_classes))
        return [(math.nan, math.nan) if one is None else (one.area_under_roc, one.average_precision) for one in curves]

    @cached_property
    def calibration(self) -> calibration.Bins:
        """The images by confidence."""
        return calibration.bins(self.probabilities, self.labels, self.bins)


# Of the test images, by the name in evaluate.json; MLflow has it as test/NAME.
METRICS: dict[str, Callable[[Answers], float]] = {
    "accuracy": lambda answers: accuracy(answers.predicted, answers.labels),
    "auroc": lambda answers: mean([area for area, _ in answers.areas]),
    "average_precision": lambda answers: mean([precision for _, precision in answers.areas]),
    "balanced_accuracy": lambda answers: answers.per_class.recall[answers.per_class.total > 0].mean().item(),
    "brier": lambda answers: brier_score(answers.probabilities, answers.labels),
    "ece": lambda answers: answers.calibration.error,
    "kappa": lambda answers: kappa(answers.confusion),
    "macro_f1": lambda answers: answers.per_class.f1.mean().item(),
    "top5": lambda answers: top(MOST_TOP, answers.probabilities, answers.labels),
}
OF_PROBABILITIES, OF_MANY_CLASSES = ("brier", "ece"), ("top5",)  # the others say something of any answers


def monitored(name: str, scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the figure of validation that is monitored, for the history, where that has not got it anyway.

    `scores` are float (n, n_classes), `labels` int64 (n,), both on the CPU.
    """
    if name in ("accuracy", "loss"):
        return {}
    return {f"valid/{name}": METRICS[name](Answers(labels, scores.argmax(1), scores.softmax(1), False, bins=1))}


def measured(answers: Answers, taken: Collection[str] = ()) -> dict[str, float]:
    """Return the figure of each of METRICS that says something of these answers.

    Raises InputError for what is no metric, or whose name is `taken`.
    """
    place = "METRICS in stages/training/metrics.py"
    check_table(place, METRICS, by_name=False, taken=taken)
    left_out = {*OF_PROBABILITIES} if not answers.are_probabilities else set()
    left_out |= {*OF_MANY_CLASSES} if answers.n_classes <= MOST_TOP else set()
    figures = {name: metric(answers) for name, metric in METRICS.items() if name not in left_out}
    for name, figure in figures.items():
        if not isinstance(figure, int | float) or not math.isfinite(figure):
            raise InputError(f"{place}: {name!r} gives {figure!r}, should be a finite number")
    return figures

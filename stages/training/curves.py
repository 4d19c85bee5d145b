"""What is gained and lost as more images are called a class's: ROC and precision-recall curves, and their areas.

One class against the rest, after Fawcett, "An introduction to ROC analysis", 2006, sections 5 and 9; of equal shares no
image comes before another.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Shares of the images, float64 (t + 1,) each, as the t different shares are gone through from the highest on.

    The first entries are before any image is called the class's, where the precision is said to be 1.
    """

    recall: Tensor  # of the class's images those that are called so
    precision: Tensor  # of those that are called so the class's
    fallout: Tensor  # of the others' images those that are called so

    @property
    def area_under_roc(self) -> float:
        """How probable it is that an image of the class has a larger share of it than another's, 0 to 1."""
        return torch.trapezoid(self.recall, self.fallout).item()

    @property
    def average_precision(self) -> float:
        """The mean of the precisions, each weighed by the recall that is gained there, 0 to 1."""
        return (self.recall.diff() * self.precision[1:]).sum().item()


def curve(shares: Tensor, is_class: Tensor) -> Curve | None:
    """Return the curve of a class, None if no image or every one is of it.

    `shares`, float (n,), say how much each image is of the class, and `is_class`, bool (n,), whether it is.
    """
    total = int(is_class.sum())
    if not 0 < total < len(is_class):
        return None
    values, order = shares.double().sort(descending=True, stable=True)
    last = torch.cat([values.diff() != 0, torch.ones(1, dtype=torch.bool)]).nonzero().flatten()  # of equal ones
    hits, called = is_class[order].cumsum(0)[last].double(), last.double() + 1
    nothing = torch.zeros(1, dtype=torch.float64)
    return Curve(
        recall=torch.cat([nothing, hits / total]),
        precision=torch.cat([nothing + 1, hits / called]),
        fallout=torch.cat([nothing, (called - hits) / (len(is_class) - total)]),
    )


def mean(figures: list[float]) -> float:
    """Return the mean of those that are numbers; NaN if none is."""
    known = [figure for figure in figures if not math.isnan(figure)]
    return sum(known) / len(known) if known else math.nan

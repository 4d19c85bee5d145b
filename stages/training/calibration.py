"""How far a classifier's confidence can be believed, and the temperature that mends it.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST = 0.1, 10.0  # temperatures
HALVINGS = 40


@dataclass(frozen=True)
class Bins:
    """Images by the confidence of what they are called, in bins of equal width, open on the left; float64 (bins,)."""

    count: Tensor
    confidence: Tensor  # their sum
    correct: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: by how much confidence and accuracy differ, by their images."""
        return ((self.confidence - self.correct).abs().sum() / self.count.sum()).item()


def bins(probabilities: Tensor, labels: Tensor, number: int) -> Bins:
    """Return the bins of images whose probabilities are float (n, n_classes) and labels int64 (n,)."""
    confidence, predicted = probabilities.double().max(1)
    place = (confidence * number).ceil().long().clamp(1, number) - 1
    sums = torch.zeros(3, number, dtype=torch.float64)
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()])
    return Bins(*sums.index_add(1, place, values))


def temperature(scores: Tensor, labels: Tensor) -> float:
    """Return by what to divide scores, float (n, n_classes), for their softmax to fit the labels, int64 (n,), best.

    That is by the mean log-likelihood, whose slope over the inverse of the temperature only falls; 0.1 to 10. Of images
    that are all right no temperature would be low enough, and they say nothing of how sure to be: 1.
    """
    if (scores.argmax(1) == labels).all():
        return 1.0
    scores = scores.double()
    right = scores.gather(1, labels[:, None]).mean()
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = ((scores * middle).softmax(1) * scores).sum(1).mean()
        low, high = (low, middle) if expected > right else (middle, high)
    return 2 / (low + high)

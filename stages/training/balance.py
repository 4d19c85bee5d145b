"""What evens out classes of unequal size: in the loss, or in what is drawn."""

import torch
from torch import Tensor


def class_counts(labels: Tensor, n_classes: int) -> Tensor:
    """Return how many of the labels, int64 (n,), are of each class: int64 (n_classes,), on the CPU."""
    return torch.bincount(labels.cpu(), minlength=n_classes)


def class_weights(counts: Tensor) -> Tensor:
    """Return the weight of an image of each class, float (n_classes,): all classes weigh alike, an image 1 on average.

    `counts` are int64 (n_classes,). As scikit-learn's "balanced" has it, after King and Zeng, "Logistic Regression in
    Rare Events Data", 2001.
    """
    return counts.sum() / (len(counts) * counts.clamp(min=1)).float()

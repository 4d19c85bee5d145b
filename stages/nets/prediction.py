"""Prediction: what a classifier gives for images, the same bits for an image whatever others are with it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.batches.prepared import Split

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256  # images in a forward pass without gradients, at most
BATCH_VALUES = 1 << 20  # and of how many values: the activations take many times the memory of the images


@torch.no_grad()
def predict(classifier: nn.Module, split: Split) -> Tensor:
    """Return the scores that `classifier` gives for the images of `split` in evaluation mode, float (n, n_classes).

    Each forward pass is of one size, since another one can change last bits: the last is filled up with black images.
    An image's place in it changes none either, at the sizes that `pass_size` gives.
    """
    classifier.eval()
    # What a net gets of an image may be larger than the image: the first of the modules are the transforms.
    image = split.take(slice(1))
    values = (classifier[0](image) if isinstance(classifier, nn.Sequential) else image).numel()
    size = pass_size(min(BATCH, max(1, BATCH_VALUES // values)), torch.get_num_threads())
    scores = torch.empty(0)
    for at in range(0, len(split.labels), size):
        split.ahead(slice(at + split.reach, at + split.reach + size))
        images = split.take(slice(at, at + size))
        n_images = len(images)
        if n_images < size:
            images = torch.cat([images, images.new_zeros(size - n_images, *images.shape[1:])])
        part = classifier(images)[:n_images]
        # Into one tensor: small ones that stay among large ones that come and go would fragment the memory.
        scores = scores if at else part.new_empty(len(split.labels), part.shape[1])
        scores[at : at + size] = part
    return scores


def pass_size(most: int, threads: int) -> int:
    """Return how many images a forward pass takes, `most` at most: a power of two for each of the threads.

    Matrix products sum in another order in rows that are left over, and so would an image that comes to stand there.
    """
    odd = threads // (threads & -threads)
    return odd << ((most // odd).bit_length() - 1) if odd <= most else 1


def table(first: Mapping[str, Any], shares: Tensor, classes: Sequence[str]) -> "pd.DataFrame":
    """Return one row an image: the `first` columns, and a column for each class, of `shares`, float (n, n_classes)."""
    import pandas as pd

    # A class may have the name of one of the first columns.
    columns = [f"{name} (class)" if name in first else name for name in classes]
    return pd.concat([pd.DataFrame(dict(first)), pd.DataFrame(shares.numpy(), columns=columns)], axis=1)

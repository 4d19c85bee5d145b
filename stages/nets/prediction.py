"""Prediction: what a classifier gives for the images of a split."""

import torch
from torch import Tensor, nn

from stages.batches.prepared import Split

BATCH = 1000  # images in a forward pass without gradients, at most
BATCH_VALUES = 1 << 20  # and of how many values: the activations take many times the memory of the images


@torch.no_grad()
def predict(classifier: nn.Module, split: Split) -> Tensor:
    """Return the scores that `classifier` gives for the images of `split` in evaluation mode, float (n, n_classes)."""
    classifier.eval()
    # What a net gets of an image may be larger than the image: the first of the modules are the transforms.
    image = split.take(slice(1))
    values = (classifier[0](image) if isinstance(classifier, nn.Sequential) else image).numel()
    size = min(BATCH, max(1, BATCH_VALUES // values))
    scores = torch.empty(0)
    for at in range(0, len(split.labels), size):
        part = classifier(split.take(slice(at, at + size)))
        # Into one tensor: small ones that stay among large ones that come and go would fragment the memory.
        scores = scores if at else part.new_empty(len(split.labels), part.shape[1])
        scores[at : at + size] = part
    return scores

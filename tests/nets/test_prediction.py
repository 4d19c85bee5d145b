"""Scores of a split, in as few batches as memory allows."""

import pytest
import torch
from torch import Tensor, nn

from stages.batches.prepared import Split
from stages.nets.prediction import BATCH, BATCH_VALUES, predict
from tests.batches.test_loader import split_of


class Sum(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert len(images) * images[0].numel() <= BATCH_VALUES
        assert len(images) <= BATCH
        return images.float().flatten(1).sum(1)[:, None]


@pytest.mark.parametrize("side", [2, 100])
def test_scores_are_the_same_in_any_number_of_batches(side: int) -> None:
    images = torch.randint(256, (2 * BATCH + 1, side, side), dtype=torch.uint8).numpy()
    index = torch.arange(0, len(images), 2)
    split = Split(images, labels=torch.zeros_like(index), rows=index)
    assert torch.equal(predict(Sum(), split)[:, 0], torch.from_numpy(images)[index].float().sum((1, 2)))


def test_images_that_transforms_enlarge_are_scored_fewer_at_once() -> None:
    split = split_of(100)
    enlarging = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Upsample(scale_factor=300))
    assert predict(nn.Sequential(enlarging, Sum()), split)[5].item() == 4 * 300**2 * 5

"""Scores of a split, in as few batches as memory allows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.batches.normalise import Normalise
from stages.batches.prepared import Split
from stages.nets.build import initial_net, net_spec
from stages.nets.prediction import BATCH, BATCH_VALUES, pass_size, predict
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


@pytest.mark.parametrize(
    ("threads", "sizes"), [(1, (256, 64)), (2, (256, 64)), (3, (192, 96)), (6, (192, 96)), (80, (160, 80))]
)
def test_a_pass_takes_a_power_of_two_for_each_thread(threads: int, sizes: tuple[int, int]) -> None:
    assert (pass_size(256, threads), pass_size(100, threads)) == sizes
    assert pass_size(4, 5) == pass_size(1, 1) == 1


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3], indirect=True)
@pytest.mark.parametrize(
    ("name", "arguments", "channels", "side"),
    [
        ("Net", {"hidden": [50], "widths": [4]}, 3, 64),
        ("Net", {"hidden": [64]}, 1, 28),
        ("ResidualNet", {"widths": [8, 16]}, 3, 50),
        ("resnet18", {}, 3, 40),
    ],
)
def test_neither_place_nor_neighbours_change_a_bit(
    threads: int, name: str, arguments: dict[str, Any], channels: int, side: int
) -> None:
    net = initial_net(net_spec(name, {name: arguments}, 10, channels, side), seed=0)
    shape = (200, channels, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(threads))
    rows = torch.arange(200)
    classifier = nn.Sequential(nn.Identity(), Normalise([0.5] * channels, [0.5] * channels), net)

    def scores(places: Tensor) -> Tensor:
        return predict(classifier, Split(images.numpy(), torch.zeros_like(places), rows=places))

    expected = scores(rows)
    for places in (rows[1:], rows[77:], rows.flip(0), rows[199:]):
        assert torch.equal(scores(places), expected[places])

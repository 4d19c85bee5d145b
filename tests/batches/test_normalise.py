"""Pixels to what a net takes: each channel with mean 0 and deviation 1."""

from pathlib import Path

import pytest
import torch

from stages.batches.normalise import Normalise, pixel_statistics
from stages.batches.prepared import Prepared


def test_normalised_training_images_have_mean_0_and_deviation_1(digits: Path) -> None:
    data = Prepared(digits)
    images = Normalise(data.mean, data.std)(data.split("train", torch.device("cpu")).read(slice(None)))
    assert images.shape == (data.sizes["train"], 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_grayscale_images_get_their_channel() -> None:
    images = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-1.0, 3.0], [-0.2, 0.6]]]])
    assert torch.allclose(Normalise([0.25], [0.25])(images), expected)
    assert torch.equal(Normalise([0.25], [0.25])(images.unsqueeze(1)), Normalise([0.25], [0.25])(images))


def test_colour_channels_have_their_own_mean_and_deviation() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    normalised = Normalise([0.5, 0.0, 1.0], [0.5, 0.5, 0.5])(images)
    assert normalised[0, :, 0, 0].tolist() == pytest.approx([1, 2, 0])


def test_floats_from_0_to_1_are_normalised_as_bytes_are() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    normalise = Normalise([0.25], [0.5])
    assert torch.allclose(normalise(images / 255), normalise(images), atol=1e-6)


def test_statistics_by_name(digits: Path) -> None:
    data = Prepared(digits)
    assert pixel_statistics("data", data, 1) == (data.mean, data.std)
    assert pixel_statistics("imagenet", data, 3) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    [mean], [std] = pixel_statistics("imagenet", data, 1)
    assert (mean, std) == pytest.approx((0.449, 0.226))
    images = data.split("train", torch.device("cpu")).read(slice(9))
    plain = Normalise(*pixel_statistics("none", data, 1))(images)
    assert torch.equal(plain, images[:, None] / 255), "as torchvision's ToTensor has it"

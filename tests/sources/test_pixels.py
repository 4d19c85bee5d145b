import hashlib

import numpy as np
import pytest

from stages.sources import pixels
from stages.sources.pixels import digest, mean_and_std


def test_mean_and_deviation_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    rows = np.arange(0, 50, 3)
    (mean,), (std,) = mean_and_std(images, rows)
    assert (mean, std) == pytest.approx((images[rows].mean() / 255, images[rows].std() / 255), rel=1e-12)
    assert mean_and_std(np.array([[[0, 255]]], dtype=np.uint8), np.array([0])) == ([0.5], [0.5])


def test_a_constant_channel_can_be_divided_by() -> None:
    images = np.zeros((2, 3, 2, 2), np.uint8)
    images[:, 1], images[1, 2] = 51, 255
    assert mean_and_std(images, np.arange(2)) == ([0.0, pytest.approx(0.2), 0.5], [1.0, 1.0, 0.5])


def test_each_channel_has_its_own() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    mean, std = mean_and_std(images, np.arange(50))
    assert mean == pytest.approx(images.mean(axis=(0, 2, 3)) / 255, rel=1e-12)
    assert std == pytest.approx(images.std(axis=(0, 2, 3)) / 255, rel=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8), np.arange(1, 50)
    whole = mean_and_std(images, rows), digest(images, rows, rows)
    monkeypatch.setattr(pixels, "BLOCK", 3 * 4 * 4 * 7)
    assert (mean_and_std(images, rows), digest(images, rows, rows)) == whole


def test_digest_is_of_images_and_labels() -> None:
    images, labels = np.zeros((3, 2, 2), np.uint8), np.array([258])
    images[0] = 1
    expected = hashlib.sha256(b"\0\0\0\0" + b"\x02\x01\0\0\0\0\0\0").hexdigest()
    assert digest(images, np.array([2]), labels) == expected

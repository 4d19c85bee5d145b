"""What all pictures share, in numbers."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from stages.report.canvas import TILE, draw_scale, draw_tiles, short, short_path, small


def test_tiles_stand_in_rows_with_gaps() -> None:
    axes = Figure().subplots()
    images = [torch.full((8, 8), float(value)) for value in (1, 2, 3)]
    assert draw_tiles(axes, images, columns=2) == (9, 9)
    canvas: np.ndarray = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
    assert canvas.shape == (18, 18)
    assert (canvas[:8, :8] == 1).all()
    assert (canvas[:8, 9:17] == 2).all()
    assert (canvas[9:17, :8] == 3).all()
    assert np.isnan(canvas[8]).all()
    assert np.isnan(canvas[9:, 9:]).all()


def test_large_images_are_averaged_to_tiles() -> None:
    images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    images[:, 1, ::2] = 100
    averaged = small(images)
    assert averaged.shape == (2, 3, TILE, TILE)
    assert averaged[:, 1].mean().item() == pytest.approx(50, abs=0.5)
    assert small(images[:, 0, :8, :9]).shape == (2, 8, 9)
    assert small(torch.zeros(1, 1, 1000)).shape == (1, 1, TILE)


def test_a_scale_says_what_its_ends_are() -> None:
    figure = Figure()
    draw_scale(figure, [figure.subplots()], 0.126)
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["-0.13", "0", "0.13"]
    assert figure.axes[1].get_ylim() == pytest.approx((-0.126, 0.126))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rose", "rose"),
        ("twelve chars", "twelve chars"),
        ("thirteen char", "thirteen ch…"),
        ("这是一个类别", "这是一个类别"),  # each as wide as two
        ("这是一个类别名", "这是一个类…"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("$x_1$", "$x_1$"),
    ],
)
def test_names_are_cut_at_the_width_that_they_take(name: str, shown: str) -> None:
    assert short(name, 12) == shown


def test_of_a_path_the_end_is_shown() -> None:
    assert short_path("roses/IMG_0001.png", 12) == "…MG_0001.png"
    assert short_path("写真/猫/1.png", 12) == "…真/猫/1.png"
    assert short_path("roses/1.png", 12) == "roses/1.png"

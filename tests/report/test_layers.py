"""Pictures of convolutions, read back pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.nets.net import Net, activations
from stages.report import canvas, layers
from tests.report.conftest import drawn, near


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (6, 1, 5, 5), (32, 2, 3, 3), (768, 3, 16, 16)])
def test_filters_of_any_first_convolution(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    weight[0, 0] = 1.0  # the largest: red
    canvas.save(layers.filters("conv1", weight), tmp_path / "a.png")
    image = drawn(tmp_path / "a.png")
    red = (255, 128, 128) if shape[1] == 3 else (103, 0, 31)  # of the three, the others are at zero, which is grey
    rows, columns = near(image, red)
    assert len(rows) > 1000
    in_tiles = columns < 0.9 * image.shape[1]
    assert columns[in_tiles].max() < image.shape[1] / 2
    if shape[1] != 3:  # a scale beside them, from blue to red
        beside = image[:, int(0.9 * image.shape[1]) :]
        redder = beside[:, :, 0] - beside[:, :, 2]
        assert np.median((redder > 0.3).nonzero()[0]) < image.shape[0] / 2 < np.median((redder < -0.3).nonzero()[0])


@pytest.mark.parametrize("arguments", [{}, {"image_size": 28, "widths": [10, 20], "kernel": 3}])
def test_filters_and_activations_of_every_convolution(tmp_path: Path, arguments: dict[str, object]) -> None:
    net = Net(10, **arguments)  # type: ignore[arg-type]
    side = int(arguments.get("image_size", 8))  # type: ignore[call-overload]
    pixels = torch.randint(256, (side, side), dtype=torch.uint8)
    x = pixels[None, None].float() - 128
    for name, before, after, pooled in activations(net, x):
        assert torch.equal(before, net.get_submodule(name)(x))
        assert torch.equal(after, before.clamp(min=0))
        assert torch.equal(pooled, torch.nn.functional.max_pool2d(after, 2))
        x = pooled
        canvas.save(layers.filters(name, net.get_parameter(f"{name}.weight").detach()), tmp_path / f"f_{name}.png")
        canvas.save(
            layers.activations(name, "a/b.png", pixels, before[0], after[0], pooled[0]), tmp_path / f"a_{name}.png"
        )
    for number in range(1, len(net.convolutions) + 1):
        for kind in ("f", "a"):
            image = drawn(tmp_path / f"{kind}_conv{number}.png")
            blue, red = image[:, :, 2] > image[:, :, 0] + 0.1, image[:, :, 0] > image[:, :, 2] + 0.1
            assert min(blue.mean(), red.mean()) > 0.01, "there are negative and positive values"


@pytest.mark.parametrize(
    ("shape", "title"),
    [
        ((32, 1, 5, 5), "conv: 32 filters"),
        ((33, 1, 5, 5), "conv: 32 of 33 filters"),
        ((64, 3, 7, 7), "conv: 32 of 64 filters, their 3 channels as colours: -0.5 is none, 0.5 is full"),
        ((20, 10, 3, 3), "conv: 16 of 20 filters, each for 8 of 10 channels side by side"),
        ((16, 2, 3, 3), "conv: 16 filters, each for 2 channels side by side"),
    ],
)
def test_filters_say_how_many_there_are_and_on_which_scale(
    tmp_path: Path, written: list[str], shape: tuple[int, ...], title: str
) -> None:
    canvas.save(layers.filters("conv", torch.full(shape, -0.5)), tmp_path / "a.png")
    assert title in written
    assert ({"-0.5", "0"} <= set(written)) == (shape[1] != 3)


@pytest.mark.parametrize(("width", "title"), [(10, "10 maps before ReLU"), (32, "16 of 32 maps before ReLU")])
def test_activations_name_the_image_and_say_how_many_maps_there_are(
    tmp_path: Path, written: list[str], width: int, title: str
) -> None:
    maps = torch.linspace(-3, 1, width)[:, None, None].expand(width, 4, 4)
    file = f"{'far/' * 20}roses/IMG_0001.png"
    canvas.save(layers.activations("conv1", file, torch.zeros(8, 8), maps, maps.clamp(min=0), maps), tmp_path / "a.png")
    assert title in written
    (named,) = [text for text in written if text.startswith("conv1 sees this test image: ")]
    assert named.endswith("far/roses/IMG_0001.png")
    assert {"-3", "0", "3"} <= set(written)

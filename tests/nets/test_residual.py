"""The residual network: what its layers are, and that it is made, trained and made again by its name."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from stages.base.errors import InputError
from stages.nets.build import build_net, net_spec
from stages.nets.residual import ResidualNet
from stages.nets.weights import load_weights
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import params_with


@pytest.mark.parametrize("pool_first", [True, False])
def test_it_is_what_its_formula_says(pool_first: bool) -> None:
    torch.manual_seed(0)
    net = ResidualNet(10, channels=3, image_size=16, widths=(4, 6, 8), pool_first=pool_first)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # one that does something
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
    tensors, images = net.eval().state_dict(), torch.randn(5, 3, 16, 16)

    def convolution(x: torch.Tensor, name: str, pool: int) -> torch.Tensor:
        norm = [tensors[f"{name}.2.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.max_pool2d(F.conv2d(x, tensors[f"{name}.0.weight"], padding=1), pool)
        return F.relu(F.batch_norm(x, *norm))

    x = convolution(images, "first", 2 if pool_first else 1)
    for stage in ("stages.0", "stages.1"):
        x = convolution(x, f"{stage}.0", 2)
        x = x + convolution(convolution(x, f"{stage}.1.layers.0", 1), f"{stage}.1.layers.1", 1)
    expected = x.flatten(2).max(2).values @ tensors["fc.weight"].T + tensors["fc.bias"]
    torch.testing.assert_close(net(images), expected)


def test_images_that_are_too_small_are_refused() -> None:
    arguments = {"ResidualNet": {"widths": [8, 8, 8]}}
    build_net(**net_spec("ResidualNet", arguments, n_classes=2, channels=1, image_size=8))
    with pytest.raises(InputError, match=r"train\.net: 3 poolings need 8 pixels a side, and the images have 7"):
        build_net(**net_spec("ResidualNet", arguments, n_classes=2, channels=1, image_size=7))


def test_it_learns_and_is_made_again(digits: Path, tmp_path: Path) -> None:
    arguments = {"ResidualNet": {"widths": [8, 16]}}
    changes = {"train.net.name": "ResidualNet", "train.net.arguments": arguments, "train.epochs": 4}
    params = params_with(changes).train
    train(params, digits, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
    net, description = load_weights(tmp_path / "net")
    assert isinstance(net, ResidualNet)
    assert description.net["arguments"] == {"widths": [8, 16], "pool_first": True}
    assert description.valid_accuracy > 0.9

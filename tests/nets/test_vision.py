"""torchvision's models: each is built for gray and for coloured images."""

import pytest
import torch

from stages.nets import vision
from stages.nets.build import convolutions, initial_net, net_spec

# One small model of each family, and a side that it takes.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "vgg11": 32,
    "vit_b_32": 64,
    "wide_resnet50_2": 32,
}


@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_one_of_each_of_torchvision_s_families(name: str, side: int) -> None:
    works(name, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(vision.names()) - set(FAMILIES)))
def test_all_others_of_torchvision(name: str) -> None:
    works(name, {"alexnet": 64, "vit_h_14": 56}.get(name, 64))


def works(name: str, side: int) -> None:
    """Build the model for gray and for coloured images, and let it pass one of each."""
    for channels in (1, 3):
        shape = net_spec(name, {}, 7, channels, side)
        net = initial_net(shape, 0).eval()
        [(_, first)] = convolutions(net).items()
        assert first.weight.shape[1] == first.in_channels == channels
        with torch.no_grad():
            scores = net(torch.randn(1, channels, side, side))
        assert scores.shape == (1, 7)
        assert scores.isfinite().all()


def test_the_only_channel_has_the_first_one_s_weights() -> None:
    gray, coloured = (initial_net(net_spec("squeezenet1_1", {}, 5, n, 32), 0).state_dict() for n in (1, 3))
    name = "features.0.weight"
    assert torch.equal(gray.pop(name), coloured.pop(name)[:, :1])
    assert all(torch.equal(gray[key], coloured[key]) for key in coloured), "all else is the same"

"""The Net against the plain formula, the course's two solutions, torchvision's models, and what is wrong with names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base.errors import InputError
from stages.nets import vision
from stages.nets.build import NetArguments, build_net, check_batch, convolutions, head, initial_net, net_spec
from stages.nets.net import Net
from tests.conftest import changed

Weights = dict[str, Tensor]


def randomly(net: Net) -> Weights:
    """Fill the net's weights with random numbers, so that no initialisation hides an error, and return them."""
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(tensor.shape, generator=generator) / 8 for name, tensor in net.state_dict().items()}
    net.load_state_dict(weights)
    return weights


def test_default_is_one_convolution_one_pool_one_linear() -> None:
    assert str(Net(20)) == (
        "Net(\n"
        "  (conv1): Conv2d(1, 32, kernel_size=(5, 5), stride=(1, 1))\n"
        "  (pool): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)\n"
        "  (fc1): Linear(in_features=128, out_features=20, bias=True)\n"
        ")"
    )
    assert {name: tuple(tensor.shape) for name, tensor in Net(20).state_dict().items()} == {
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "fc1.weight": (20, 128),
        "fc1.bias": (20,),
    }


def test_parameters_at_28_pixels() -> None:
    # 32 * (5 * 5 + 1) + (32 * 12 * 12 + 1) * 10
    assert sum(parameter.numel() for parameter in Net(10, image_size=28).parameters()) == 46_922


def test_output_is_the_plain_formula_s() -> None:
    net = Net(20)
    w = randomly(net)
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(2))

    x = F.max_pool2d(F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"])), 2, 2)
    x = x.view(x.size(0), -1)
    expected = F.relu(F.linear(x, w["fc1.weight"], w["fc1.bias"]))

    assert x.shape == (7, 128)
    assert torch.equal(net(images), expected)


@pytest.mark.parametrize(
    ("output", "formula"),
    [("relu", F.relu), ("logits", lambda x: x), ("log_softmax", lambda x: F.log_softmax(x, dim=1))],
)
def test_outputs(output: str, formula: Callable[[Tensor], Tensor]) -> None:
    net, images = Net(3, output=output), torch.randn(5, 1, 8, 8)
    w = randomly(net)
    x = F.max_pool2d(F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"])), 2, 2).flatten(1)
    assert torch.equal(net(images), formula(F.linear(x, w["fc1.weight"], w["fc1.bias"])))


def course(name: str, arguments: dict[str, Any] | None = None) -> Net:
    net = build_net(**net_spec(name, {name: arguments or {}}, 10, 1, 28))
    assert isinstance(net, Net)
    return net


def test_course_s_first_solution() -> None:
    net = course("course_1")
    w = randomly(net)
    images = torch.randn(4, 1, 28, 28)
    x = F.max_pool2d(F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"])), 2, 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2, 2).flatten(1)
    assert torch.equal(net(images), F.log_softmax(F.linear(x, w["fc1.weight"], w["fc1.bias"]), dim=1))


def test_course_s_second_solution() -> None:
    net = course("course_2")
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items() if "weight" in name} == {
        "conv1.weight": (10, 1, 3, 3),
        "conv2.weight": (20, 10, 3, 3),
        "fc1.weight": (50, 500),
        "fc2.weight": (10, 50),
    }
    assert (net.dropout, net.output) == (0.4, "log_softmax")
    images = torch.randn(4, 1, 28, 28)
    assert not torch.equal(net.train()(images), net(images)), "dropout must act while training"
    assert torch.equal(net.eval()(images), net(images)), "and only then"


def test_arguments_change_what_a_name_stands_for() -> None:
    assert course("course_2", {"dropout": 0.1}).dropout == 0.1
    assert course("course_1", {"widths": [4, 5]}).state_dict()["conv2.weight"].shape == (5, 4, 3, 3)
    bias = torch.full((10,), 0.5)
    assert torch.equal(course("course_1", {"bias_start": 0.5}).state_dict()["fc1.bias"], bias)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 4}, r"conv1 \(a 5x5 kernel\) needs at least 5 pixels a side, but of the image's 4 only 4"),
        ({"pool": 5}, r"pooling after conv1 \(5x5\) needs at least 5 pixels a side, but of the image's 8 only 4"),
        ({"widths": [8, 8]}, r"conv2 \(a 5x5 kernel\) needs at least 5 pixels a side, but of the image's 8 only 2"),
    ],
)
def test_too_small_an_image_names_the_layer(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Net(10, **arguments)  # type: ignore[arg-type]


def started(seed: int, **arguments: Any) -> dict[str, Tensor]:
    return initial_net(net_spec("Net", {"Net": arguments}, 10, 1, 8), seed).state_dict()


def test_initial_net_follows_from_the_seed() -> None:
    one, same, other = (started(seed, bias_start=1.0) for seed in (3, 3, 4))
    assert torch.equal(one["fc1.weight"], same["fc1.weight"])
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])
    assert torch.equal(one["fc1.bias"], torch.ones(10))
    assert not torch.equal(started(3)["fc1.bias"], torch.ones(10))


def test_the_bias_start_draws_nothing() -> None:
    torch.manual_seed(5)
    conv1, fc1 = nn.Conv2d(1, 32, 5), nn.Linear(128, 10)
    after = torch.rand(1)
    net = started(5, bias_start=1.0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(net["conv1.weight"], conv1.weight)
    assert torch.equal(net["fc1.weight"], fc1.weight)


def test_params_name_the_page_s_net() -> None:
    shape = net_spec(**changed({}).train.net.model_dump(), n_classes=10, channels=1, image_size=8)
    assert shape["arguments"].keys() == NetArguments.model_fields.keys()
    assert str(build_net(**shape)) == str(Net(10))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Net", {"Net": {"kernel": -1}}, r"train\.net\.arguments\.Net\.kernel: -1, should be greater than 0"),
        ("Net", {"Net": {"widths": "32"}}, r"train\.net\.arguments\.Net\.widths: '32', should be a valid list"),
        ("Net", {"Net": {"widths": [8, "x"]}}, r"arguments\.Net\.widths\.1: 'x', should be a valid integer"),
        ("course_2", {"course_2": {"dropout": 1.5}}, r"arguments\.course_2\.dropout: 1\.5, should be less than 1"),
        (
            "Net",
            {"Net": {"output": "tanh"}},
            r"Net\.output: 'tanh', should be 'auto', 'relu', 'logits' or 'log_softmax'",
        ),
        ("Net", {"Net": {"bias_start": "one"}}, r"Net\.bias_start: 'one', should be a valid number"),
        ("Net", {"Net": {"kernl": 3}}, r"Net\.kernl: unknown key \(did you mean kernel\?\); accepted: widths, kernel"),
        ("Net", {"Net": {"hidden": [10**12]}}, r"train\.net: Net cannot be made with .*1000000000000"),
        ("course_3", {}, r"train\.net\.name: 'course_3' is unknown \(did you mean course_"),
        (
            "resnet19",
            {},
            r"'resnet19' is unknown \(did you mean resnet\d+ or .*\?\); accepted: Net, course_1, course_2, ",
        ),
        ("Resnet", {}, r"and torchvision's classification models: alexnet, convnext\*, densenet\*, .*, resnet\*, "),
        ("Net", {"net": {}}, r"train\.net\.arguments: 'net' is unknown"),
        (
            "resnet18",
            {"resnet18": {"zero_init": True}},
            r"resnet18\.zero_init: .*\(did you mean zero_init_residual\?\)",
        ),
        ("resnet18", {"resnet18": {"groups": 3}}, r"arguments\.resnet18: resnet18 refuses \{'groups': 3\}: ValueError"),
        ("resnet18", {"resnet18": {"weights": "DEFAULT"}}, r"resnet18\.weights: not an argument to give here"),
        ("vit_b_16", {"vit_b_16": {"image_size": 8}}, r"vit_b_16\.image_size: not an argument to give here"),
        ("vit_b_16", {}, r"vit_b_16 does not take images of 40x40 pixels: .*indivisible .*(?s:.)*prepare\.image_size"),
        ("maxvit_t", {}, r"maxvit_t does not take images of 40x40 pixels"),
        ("inception_v3", {}, r"inception_v3 does not take images of 40x40 pixels: (?s:.)*another prepare\.image_size"),
    ],
)
def test_wrong_nets_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_net(**net_spec(name, arguments, 5, 3, 40))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        net_spec("Net", {"Net": {"kernel": 0, "pool": 2.5}}, 5, 1, 8)
    assert str(caught.value).splitlines() == [
        "train.net.arguments.Net has 2 errors:",
        "  train.net.arguments.Net.kernel: 0, should be greater than 0",
        "  train.net.arguments.Net.pool: 2.5, should be a valid integer",
    ]


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


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("Net", 8, {"fc1.weight", "fc1.bias"}),
        ("course_2", 28, {"fc2.weight", "fc2.bias"}),
        ("resnet18", 32, {"fc.weight", "fc.bias"}),
        ("squeezenet1_1", 32, {"classifier.1.weight", "classifier.1.bias"}),
        ("regnet_x_400mf", 32, {"fc.weight", "fc.bias"}),
    ],
)
def test_the_last_layer_is_what_follows_from_the_classes(name: str, side: int, expected: set[str]) -> None:
    shape = net_spec(name, {}, 5, 1, side)
    net = initial_net(shape, 0)
    state = torch.get_rng_state()
    assert head(net, shape) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_image_and_batch_norm() -> None:
    shape = net_spec("resnet18", {}, 5, 1, 32)
    net = initial_net(shape, 0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=r"train\.batch_size: an epoch has a batch of 1 image, of which resnet18's"):
        check_batch(net, shape, 1)
    check_batch(net, shape, 2)
    check_batch(net, shape | {"image_size": 64}, 1)
    check_batch(Net(5), net_spec("Net", {}, 5, 1, 8), 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # which it spares the user
        net.train()(torch.zeros(1, 1, 32, 32))

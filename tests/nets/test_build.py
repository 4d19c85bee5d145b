"""From params to a net: what a name stands for, what follows from the seed, and what is said of a wrong one."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.base.errors import InputError
from stages.nets.build import NetArguments, build_net, check_batch, convolutions, head, initial_net, net_spec
from stages.nets.net import NETS, Net
from tests.conftest import params_with
from tests.nets.test_net import course


def test_arguments_change_what_a_name_stands_for() -> None:
    assert course("course_2", {"dropout": 0.1}).dropout == 0.1
    assert course("course_1", {"widths": [4, 5]}).state_dict()["conv2.weight"].shape == (5, 4, 3, 3)
    bias = torch.full((10,), 0.5)
    assert torch.equal(course("course_1", {"bias_start": 0.5}).state_dict()["fc1.bias"], bias)


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
    shape = net_spec(**params_with({}).train.net.model_dump(), n_classes=10, channels=1, image_size=8)
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
            r"'resnet19' is unknown \(did you mean resnet\d+ or .*\?\); accepted: Net, ResidualNet, course_1, ",
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
    with pytest.raises(InputError, match=r"train\.batch_size: an epoch has a batch of 1 image: resnet18's"):
        check_batch(net, shape, 1)
    check_batch(net, shape, 2)
    check_batch(net, shape | {"image_size": 64}, 1)
    check_batch(Net(5), net_spec("Net", {}, 5, 1, 8), 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # which it spares the user
        net.train()(torch.zeros(1, 1, 32, 32))


class Small(nn.Module):
    """A net of the user's own."""

    def __init__(self, n_classes: int, channels: int, image_size: int, width: int = 4, sides: Any = (1, 2)) -> None:
        super().__init__()
        self.sides = sides
        self.fc1, self.fc2 = nn.Linear(channels * image_size**2, width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())  # type: ignore[no-any-return]


def test_a_class_in_the_table_is_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "Small", Small)
    monkeypatch.setitem(NETS, "narrow", partial(Small, width=2))
    torch.manual_seed(3)
    fc1 = nn.Linear(64, 4)
    spec = net_spec("Small", {}, 5, 1, 8)
    assert spec["arguments"] == {"width": 4, "sides": [1, 2]}
    net = initial_net(spec, 3)
    assert isinstance(net, Small)
    assert net.training
    assert torch.equal(net.fc1.weight, fc1.weight), "no number is drawn before its own"
    assert head(net, spec) == {"fc2.weight", "fc2.bias"}
    assert convolutions(net) == {}
    assert net_spec("Small", {"Small": {"width": 6}}, 5, 1, 8)["arguments"]["width"] == 6
    assert net_spec("narrow", {}, 5, 1, 8)["arguments"]["width"] == 2
    refused: list[tuple[dict[str, Any], str]] = [
        ({"widht": 6}, r"Small\.widht: unknown key \(did you mean width\?\); accepted: width, sides"),
        ({"width": "6"}, r"Small cannot be made with \{.*'6'.*\}: TypeError: "),
        ({"sides": torch.float}, r"Small: \{.*\}, should be numbers, texts, lists and mappings: .* not JSON"),
        ({"width": -1}, r"train\.net: Small cannot be made with"),
    ]
    for given, message in refused:
        with pytest.raises(InputError, match=message):
            build_net(**net_spec("Small", {"Small": given}, 5, 1, 8))


def needs_more(n_classes: int, channels: int, image_size: int, width: int) -> nn.Module:
    return Small(n_classes, channels, image_size, width)


def takes_less(n_classes: int) -> nn.Module:
    return Small(n_classes, 1, 8)


def no_scores(n_classes: int, channels: int, image_size: int) -> nn.Module:  # noqa: ARG001
    return nn.Flatten()


def no_module(n_classes: int, channels: int, image_size: int) -> str:  # noqa: ARG001
    return "Net"


def no_images(n_classes: int, channels: int, image_size: int) -> nn.Module:  # noqa: ARG001
    return nn.Linear(3, n_classes)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("MyNet", {}, r"NETS in stages/nets/net\.py: 'MyNet' is \{\}, should be a class or function"),
        ("MyNet", Net, r"'MyNet' is Net, should be what is called MyNet; partial\(…\) makes Net with other defaults"),
        ("needs_more", needs_more, r"arguments\.needs_more\.width: missing"),
        ("takes_less", takes_less, r"takes_less cannot be made with \{\}: TypeError: .*unexpected keyword argument"),
        ("no_scores", no_scores, r"no_scores gives torch\.float32 \(2, 64\), should be float32 \(2, 5\)"),
        ("no_module", no_module, r"no_module makes 'Net', should be a module of torch\.nn"),
        ("no_images", no_images, r"no_images does not take images \(2, 1, 8, 8\): RuntimeError"),
    ],
)
def test_an_entry_that_is_not_what_it_says(
    name: str, entry: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETS, name, entry)
    with pytest.raises(InputError, match=message):
        build_net(**net_spec(name, {}, 5, 1, 8))

"""The Net against the plain formula and the course's two solutions, and the basic operations that it uses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base import threads
from stages.base.errors import InputError
from stages.nets.build import build_net, net_spec
from stages.nets.net import Net, threads_of_a_step
from stages.nets.residual import ResidualNet
from stages.training.optimizers import optimizer

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
    torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "formula"),
    [("relu", F.relu), ("logits", lambda x: x), ("log_softmax", lambda x: F.log_softmax(x, dim=1))],
)
def test_outputs(output: str, formula: Callable[[Tensor], Tensor]) -> None:
    net, images = Net(3, output=output), torch.randn(5, 1, 8, 8)
    w = randomly(net)
    x = F.max_pool2d(F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"])), 2, 2).flatten(1)
    expected = formula(F.linear(x, w["fc1.weight"], w["fc1.bias"]))
    torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)


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
    expected = F.log_softmax(F.linear(x, w["fc1.weight"], w["fc1.bias"]), dim=1)
    torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)


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


def test_flatten_keeps_the_batch() -> None:
    assert torch.equal(
        torch.arange(6.0).view(1, 2, 3).flatten(start_dim=1), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    )


def test_unsqueeze_makes_a_column() -> None:
    assert torch.equal(torch.tensor([1, 2, 3, 4]).unsqueeze(1), torch.tensor([[1], [2], [3], [4]]))


def test_a_step_has_one_thread_where_two_are_not_worth_it() -> None:
    before = torch.get_num_threads()

    def had(net: nn.Module, images: int, side: int = 28) -> int:
        with threads_of_a_step(net, images, 1, side)():
            return torch.get_num_threads()

    class Other(Net):
        """Whose layers may be others."""

    net = Net(10, image_size=28)
    torch.set_num_threads(3)
    try:
        assert [had(net, images) for images in (1, 20, 64, 80, 128, 10**9)] == [1, 1, 1, 3, 3, 3]
        assert had(Net(10), 64, side=8) == 1
        assert had(Net(10, image_size=28, hidden=[32]), 20) == 3, "other layers are torch's"
        assert had(Net(10, image_size=28, pool=4), 20) == 3, "what is too large to be compiled, too"
        assert had(ResidualNet(10), 20) == had(Other(10, image_size=28), 20) == 3
        with torch.autocast("cpu", torch.bfloat16):
            assert had(net, 20) == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_one_thread_or_two_make_the_same_weights(name: str) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for number in (1, 2):
            torch.manual_seed(0)
            net = Net(10, image_size=28)
            own = optimizer(name, None, {}, net.parameters())
            for _ in range(5):
                with threads.limited(number):
                    own.zero_grad()
                    F.cross_entropy(net(torch.rand(20, 1, 28, 28)), torch.randint(10, (20,))).backward()
                    own.step()
            found.append(net.state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())

"""The first layer in one pass against torch's three: its values, its gradients, and its bits."""

import math
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.nets import compiler
from stages.nets.first_layer import first_and_only_layer, first_layer, pooled_convolution


def made(
    channels: int, side: int, width: int, kernel: int, pool: int, n: int
) -> tuple[Tensor, nn.Conv2d, nn.MaxPool2d]:
    torch.manual_seed(side * width)
    return torch.randn(n, channels, side, side), nn.Conv2d(channels, width, kernel), nn.MaxPool2d(pool)


def gradients(maps: Tensor, convolution: nn.Conv2d, slope: Tensor) -> list[Tensor]:
    convolution.zero_grad()
    maps.backward(slope)
    return [parameter.grad.clone() for parameter in convolution.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 13, 28])
@pytest.mark.parametrize(
    ("width", "kernel", "pool"), [(32, 5, 2), (16, 3, 2), (48, 5, 3), (10, 3, 2), (1, 1, 3), (23, 4, 1), (64, 7, 2)]
)
@pytest.mark.parametrize("n", [1, 20])
def test_it_is_torch_s(channels: int, side: int, width: int, kernel: int, pool: int, n: int) -> None:
    images, convolution, pooling = made(channels, side, width, kernel, pool, n)
    ours, theirs = first_layer(images, convolution, pooling), pooled_convolution(images, convolution, pooling)
    assert type(ours.grad_fn).__name__ == "_LayersBackward"
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # Where two of a patch are equal but for rounding, either may be the largest: its slope is 0 here.
    values = convolution(images).unfold(2, pool, pool).unfold(3, pool, pool).flatten(4)
    clear = (values.topk(min(2, values.shape[-1]), dim=-1).values.diff(dim=-1).abs() > 1e-4).all(-1)
    slope = torch.randn(ours.shape) * (clear & ((theirs > 1e-4) | (theirs == 0)))
    for own, other in zip(gradients(ours, convolution, slope), gradients(theirs, convolution, slope), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 13), (1, 8)])
@pytest.mark.parametrize(("width", "kernel", "pool", "classes"), [(32, 5, 2, 10), (16, 3, 2, 1), (48, 5, 3, 16)])
@pytest.mark.parametrize("n", [1, 20])
def test_with_a_linear_layer_it_is_torch_s_and_that_of_the_layer_alone(
    channels: int, side: int, width: int, kernel: int, pool: int, classes: int, n: int
) -> None:
    images, convolution, pooling = made(channels, side, width, kernel, pool, n)
    pooled = (side - kernel + 1) // pool
    linear = nn.Linear(width * pooled * pooled, classes)
    modules = nn.ModuleList([convolution, linear])
    slope = torch.linspace(-1, 2, n * classes).view(n, classes)
    both = []
    for one_pass in (True, False):
        modules.zero_grad()
        if one_pass:
            scores = first_and_only_layer(images, convolution, pooling, linear)
            assert "_LayersBackward" in str(scores.grad_fn.next_functions), "products, and the bias"  # type: ignore[union-attr]
        else:
            scores = linear(first_layer(images, convolution, pooling).flatten(1))
        scores.backward(slope)
        both.append([scores.detach(), *(parameter.grad for parameter in modules.parameters())])
    theirs = linear(pooled_convolution(images, convolution, pooling).flatten(1)).detach()
    torch.testing.assert_close(both[0][0], theirs, rtol=1e-5, atol=1e-5)
    for own, other in zip(*both, strict=True):
        assert own is not None
        assert other is not None
        torch.testing.assert_close(own, other, rtol=1e-5, atol=3e-6 * float(other.abs().max()))


def test_gradients_are_those_of_finite_differences() -> None:
    images, convolution, pooling = made(2, 9, 5, 3, 2, 3)
    slope = torch.randn(3, 5, 3, 3)
    weight, bias = gradients(first_layer(images, convolution, pooling), convolution, slope)

    @torch.no_grad()
    def loss(moved: nn.Conv2d) -> float:
        return float((pooled_convolution(images.double(), moved, pooling) * slope).sum())

    exact = nn.Conv2d(2, 5, 3).double()
    for name, found in (("weight", weight), ("bias", bias)):
        for index in torch.cartesian_prod(*map(torch.arange, found.shape)).view(-1, found.ndim).tolist():
            losses = []
            for step in (1e-6, -1e-6):
                exact.load_state_dict(convolution.state_dict())
                with torch.no_grad():
                    exact.get_parameter(name)[tuple(index)] += step
                losses.append(loss(exact))
            assert found[tuple(index)].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-3, abs=1e-4)


def alone(function: compiler.Function, task: object, *_: int) -> None:
    """Stands for OpenMP where it may not start as many threads as one wants."""
    function(task)


def test_openmp_has_as_many_threads_as_are_asked_for() -> None:
    seen: list[int] = []
    parallel = compiler.openmp()
    assert parallel is not None
    parallel(compiler.FUNCTION(lambda _: seen.append(threading.get_native_id())), None, 3, 0)
    assert len(seen) == len({*seen}) == 3


@pytest.mark.parametrize("pool", ["openmp", "threads of its own", "fewer than asked for"])
def test_bits_are_the_same_with_any_number_of_threads(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "WORTH_A_THREAD", 1)
    if pool == "openmp":
        assert compiler.openmp() is not None
    else:
        monkeypatch.setattr(compiler, "openmp", lambda: alone if pool == "fewer than asked for" else None)
    images, convolution, pooling = made(1, 28, 32, 5, 2, 61)
    linear = nn.Linear(32 * 12 * 12, 10)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            maps = first_layer(images, convolution, pooling)
            tensors = [maps, *gradients(maps, convolution, torch.linspace(-1, 1, maps.numel()).view(maps.shape))]
            linear.zero_grad()
            scores = first_and_only_layer(images, convolution, pooling, linear)
            tensors += [scores, *gradients(scores, convolution, torch.linspace(-1, 1, 610).view(61, 10))]
            assert linear.weight.grad is not None
            found.append([*tensors, linear.weight.grad.clone()])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_of_equal_values_the_first_wins_and_none_of_zero() -> None:
    images, convolution, pooling = torch.ones(1, 1, 4, 4), nn.Conv2d(1, 3, 1), nn.MaxPool2d(2)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1, 1))
        convolution.bias.zero_()  # type: ignore[union-attr]
    images[0, 0, 0, 1] = 2.0
    maps = first_layer(images, convolution, pooling)
    assert maps[0, :, 0, 0].tolist() == [2.0, 0.0, 0.0]
    weight, bias = gradients(maps, convolution, torch.ones(1, 3, 2, 2))
    assert weight.view(3).tolist() == [5.0, 0.0, 0.0], "one pixel of 2, three of 1; ReLU has no slope at 0"
    assert bias.tolist() == [4.0, 0.0, 0.0]


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_not_a_number_stays(corner: tuple[int, int]) -> None:
    images, convolution, pooling = made(1, 6, 4, 1, 2, 1)
    images[0, 0, 2 + corner[0], 4 + corner[1]] = math.nan
    is_nan = first_layer(images, convolution, pooling).isnan()
    assert is_nan[0, :, 1, 2].all()
    assert is_nan.sum() == 4


def test_what_it_leaves_to_torch() -> None:
    images, convolution, pooling = made(1, 8, 4, 5, 2, 2)

    def node(images: Tensor, convolution: nn.Conv2d = convolution, pooling: nn.MaxPool2d = pooling) -> str:
        return type(first_layer(images, convolution, pooling).grad_fn).__name__

    assert node(images) == "_LayersBackward"
    assert node(images.clone().requires_grad_()) == "ReluBackward0", "what shows which pixels matter needs it"
    assert node(images[:, :, :7]) == "ReluBackward0"
    assert node(images, nn.Conv2d(1, 4, 5, padding=2)) == "ReluBackward0"
    assert node(images, nn.Conv2d(1, 4, 5, stride=2), nn.MaxPool2d(1)) == "ReluBackward0"
    assert node(images, nn.Conv2d(1, 4, 5, bias=False)) == "ReluBackward0"
    assert node(images, convolution, nn.MaxPool2d(2, 1)) == "ReluBackward0"
    assert node(images, convolution, nn.MaxPool2d(4)) == "ReluBackward0", "it would be compiled for seconds"
    assert node(torch.randn(1, 1, 20, 20), nn.Conv2d(1, 4, 16)) == "ReluBackward0", "that, too"
    assert node(images.double(), nn.Conv2d(1, 4, 5).double()) == "ReluBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert first_layer(images, convolution, pooling).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=r"expected input.* to have 1 channels, but got 3 channels"):
        first_layer(images.expand(2, 3, 8, 8), convolution, pooling)

    class Halved(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) / 2

    assert node(images, Halved(1, 4, 5)) == "ReluBackward0"
    assert node(images, convolution, nn.AvgPool2d(2)) == "ReluBackward0"  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="Output size is too small"):
        first_layer(images, convolution, nn.MaxPool2d(5))
    gradients_seen: list[nn.Module] = []
    with convolution.register_full_backward_hook(lambda module, *_: gradients_seen.append(module)):
        first_layer(images, convolution, pooling).sum().backward()
    assert gradients_seen == [convolution]
    for module in (convolution, pooling):
        seen: list[nn.Module] = []
        with module.register_forward_hook(lambda module, _x, _y, seen=seen: seen.append(module)):
            assert node(images) == "ReluBackward0"
        assert seen == [module]


def test_which_linear_layers_it_leaves_to_torch() -> None:
    images, convolution, pooling = made(1, 8, 16, 5, 2, 2)

    def node(linear: nn.Linear, maps_of: nn.Conv2d = convolution) -> str:
        return type(first_and_only_layer(images, maps_of, pooling, linear).grad_fn).__name__

    assert node(nn.Linear(64, 10)) == "AddBackward0"
    assert node(nn.Linear(64, 10, bias=False)) == "_LayersBackward"
    assert node(nn.Linear(64, 17)) == "AddmmBackward0"
    assert node(nn.Linear(40, 10), nn.Conv2d(1, 10, 5)) == "AddmmBackward0"
    assert node(nn.Linear(64, 10).double().float(), convolution) == "AddBackward0"
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        node(nn.Linear(60, 10))
    linear, seen = nn.Linear(64, 10), []
    with linear.register_forward_hook(lambda _module, _x, y: seen.append(y.shape)):
        assert node(linear) == "AddmmBackward0"
    assert seen == [(2, 10)]
    with torch.autocast("cpu", torch.bfloat16):
        assert first_and_only_layer(images, convolution, pooling, linear).dtype == torch.bfloat16
    assert first_and_only_layer(images[:0], convolution, pooling, linear).shape == (0, 10)


def test_other_orders_in_memory() -> None:
    images, convolution, pooling = made(3, 12, 16, 3, 2, 4)
    expected = F.relu(F.max_pool2d(F.conv2d(images, convolution.weight, convolution.bias), 2))
    for other in (images.contiguous(memory_format=torch.channels_last), images.mT.contiguous().mT):
        torch.testing.assert_close(first_layer(other, convolution, pooling), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first_layer(images[1::2], convolution, pooling), expected[1::2], rtol=1e-5, atol=1e-6)
    assert first_layer(images[:0], convolution, pooling).shape == (0, 16, 5, 5)

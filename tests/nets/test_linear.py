"""The narrow linear layer against torch's: its values, its gradients, and its bits."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.nets import compiler
from stages.nets.linear import linear_of_maps


def made(n: int, width: int, side: int, classes: int) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(width)
    return torch.randn(n, width, side, side), nn.Linear(width * side * side, classes)


def all_of(maps: Tensor, linear: nn.Linear) -> list[Tensor]:
    """Return the scores, and the gradients of the maps, the weight and the bias."""
    linear.zero_grad()
    maps = maps.clone().requires_grad_()
    scores = linear_of_maps(maps, linear)
    scores.backward(torch.linspace(-1, 2, scores.numel()).view(scores.shape))
    return [tensor for tensor in (scores, maps.grad, linear.weight.grad, linear.bias.grad) if tensor is not None]


@pytest.mark.parametrize("n", [1, 20, 129])
@pytest.mark.parametrize(("width", "side", "classes"), [(32, 12, 10), (32, 2, 10), (16, 1, 1), (48, 3, 16)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_it_is_torch_s(n: int, width: int, side: int, classes: int, memory_format: torch.memory_format) -> None:
    maps, linear = made(n, width, side, classes)
    ours = all_of(maps.contiguous(memory_format=memory_format), linear)
    exact_maps, exact = maps.double().requires_grad_(), linear.double()
    exact.zero_grad()
    scores = F.linear(exact_maps.flatten(1), exact.weight, exact.bias)
    scores.backward(torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view(scores.shape))
    for found, expected in zip(
        ours, [scores.detach(), exact_maps.grad, exact.weight.grad, exact.bias.grad], strict=True
    ):
        assert expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


def test_bits_are_the_same_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "WORTH_A_THREAD", 1)
    maps, linear = made(61, 32, 12, 10)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            found.append(all_of(maps, linear)[:3])  # torch itself sums the bias's
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_not_a_number_stays() -> None:
    maps, linear = made(3, 16, 2, 10)
    maps[1, 5, 0, 1] = math.nan
    assert linear_of_maps(maps, linear).isnan().all(1).tolist() == [False, True, False]


def test_what_it_leaves_to_torch() -> None:
    def node(maps: Tensor, linear: nn.Linear) -> str:
        return type(linear_of_maps(maps, linear).grad_fn).__name__

    assert node(*made(2, 16, 2, 10)) == "AddBackward0"
    assert node(*made(2, 16, 2, 17)) == "AddmmBackward0"
    assert node(*made(2, 10, 5, 10)) == "AddmmBackward0"
    maps, linear = made(2, 16, 2, 10)
    assert node(maps.double(), linear.double()) == "AddmmBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_of_maps(*made(2, 16, 2, 10)).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear_of_maps(maps[:, :8].float(), linear.float())
    assert linear_of_maps(maps[:0].float(), linear).shape == (0, 10)

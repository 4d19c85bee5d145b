"""What LLVM makes of the loops: the same bits for every CPU."""

import platform
from collections.abc import Iterator

import pytest
import torch
from llvmlite import binding
from torch import Tensor
from torch.nn import functional as F

from stages.nets import first_layer
from stages.nets.net import Net


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    first_layer._compiled.cache_clear()


def step(width: int) -> list[Tensor]:
    """Return the scores of a Net for random images, and the gradients of its weights."""
    torch.manual_seed(0)
    net = Net(10, image_size=28, widths=[width], output="logits")
    scores = net(torch.randn(61, 1, 28, 28))
    F.cross_entropy(scores, torch.arange(61) % 10).backward()
    return [scores, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


# Those without `fma` call a function for it, of the C library.
CPUS = {"x86_64": ("x86-64", "haswell"), "AMD64": ("x86-64", "haswell"), "aarch64": ("generic",), "arm64": ("generic",)}


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("width", [32, 48, 7])  # of the last torch has the linear layer: 1,008 values
@pytest.mark.parametrize("cpu", CPUS[platform.machine()])
def test_bits_are_the_same_with_other_instructions(cpu: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here = step(width)
    assert len(here) == 5
    forget()
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: cpu)
    monkeypatch.setattr(binding, "get_host_cpu_features", binding.FeatureMap)
    for one, other in zip(here, step(width), strict=True):
        assert torch.equal(one, other)

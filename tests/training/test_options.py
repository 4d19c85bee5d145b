"""What is off by default: each does nothing then, and what it says when it is on."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from stages.base.instructions import Level
from stages.training import options
from stages.training.selection import should_stop

CPU = torch.device("cpu")
PORTABLE_REASON = "train.determinism: portable keeps to instructions that know no bfloat16"


@pytest.mark.parametrize(
    ("name", "device", "level", "flags", "is_compiled", "reason"),
    [
        ("float32", "cpu", "portable", "", True, ""),
        ("bfloat16", "cuda", "portable", "", True, ""),
        ("bfloat16", "cpu", "portable", "avx2 avx512_bf16", False, PORTABLE_REASON),
        ("bfloat16", "cpu", "portable", "", False, "this CPU has no instructions for it"),
        ("bfloat16", "cpu", "machine", "avx2", False, "this CPU has no instructions for it"),
        ("bfloat16", "cpu", "machine", "amx_bf16", True, "this net's layers are compiled for float32"),
        ("bfloat16", "cpu", "machine", "avx512_bf16", False, ""),
    ],
)
def test_slow_bfloat16_is_said(
    name: str,
    device: str,
    level: Level,
    flags: str,
    is_compiled: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("stages.base.instructions._has", lambda flag, **_: flag in flags)
    options.warn_if_slower(name, torch.device(device), level, is_compiled)
    expected = f"warning: train.precision: bfloat16 is slower than float32 here: {reason}\n" if reason else ""
    assert capsys.readouterr().err == expected


def test_clipping_scales_the_whole_gradient() -> None:
    net = nn.Linear(2, 1, bias=False)
    for norm, expected in ((None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        net.weight.grad = torch.tensor([[3.0, 4.0]])
        options.clipping(net, norm)()
        assert net.weight.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_the_average_follows_the_weights() -> None:
    net = nn.BatchNorm1d(1)
    average = options.ema(net, 0.75)
    expected = None
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(net.weight, value)
        net.running_mean = torch.tensor([10 * value])
        average.update()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
        weights = average.net.state_dict()
        assert weights["weight"].item() == pytest.approx(expected)
        assert weights["running_mean"].item() == pytest.approx(10 * expected)
    assert net.weight.item() == 4.0
    assert list(weights) == list(net.state_dict()), "the average is saved under the net's own names"


def test_whole_numbers_are_not_averaged() -> None:
    net = nn.Linear(1, 1)
    net.register_buffer("table", torch.tensor([3, 5]))
    average = options.ema(net, 0.9)
    for _ in range(11):
        average.update()
    assert average.net.state_dict()["table"].tolist() == [3, 5]


def test_without_an_average_it_is_the_net_itself() -> None:
    net = nn.Linear(1, 1)
    average = options.ema(net, None)
    average.update()
    assert average.net is net


def test_precision() -> None:
    net, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert isinstance(options.precision("float32", CPU)(), nullcontext)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        context = options.precision(name, CPU)
        for _ in range(2):  # it can be entered again and again
            with context():
                assert net(x).dtype == dtype


def test_the_end_comes_when_patience_is_over() -> None:
    assert [should_stop(epoch, 4, 2) for epoch in (4, 5, 6, 7)] == [False, False, True, True]
    assert not should_stop(1000, 1, None)

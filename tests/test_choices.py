"""Losses, optimizers and schedules by their torch names: what they do, and what is said of wrong ones."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from stages.command import InputError
from stages.losses import LOSSES, criterion
from stages.optimizers import OPTIMIZERS, optimizer
from stages.schedules import SCHEDULES, schedule

CPU = torch.device("cpu")
SCORES = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
LABELS = torch.tensor([0, 1])
# -log of the softmax at the label: log(1 + e^-2) and log 2.
EXPECTED = (math.log(1 + math.exp(-2)) + math.log(2)) / 2


def parameter(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value]))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_scores(name: str) -> None:
    assert criterion(name, {}, 2, CPU)(SCORES, LABELS).item() == pytest.approx(EXPECTED)


def test_nll_takes_log_probabilities_as_they_are() -> None:
    assert criterion("NLLLoss", {}, 2, CPU)(SCORES.log_softmax(1), LABELS).item() == pytest.approx(EXPECTED)


def test_loss_arguments() -> None:
    weighted = criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"weight": [1, 3]}}, 2, CPU)
    first, second = math.log(1 + math.exp(-2)), math.log(2)
    assert weighted(SCORES, LABELS).item() == pytest.approx((first + 3 * second) / 4)


def test_arguments_of_other_classes_wait() -> None:
    given = {"SGD": {"momentum": 0.5}, "AdamW": {"weight_decay": 0.1}}
    assert optimizer("SGD", None, given, [parameter()]).defaults["momentum"] == 0.5
    assert optimizer("AdamW", None, given, [parameter()]).defaults["weight_decay"] == 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_have_defaults_and_take_a_learning_rate(name: str) -> None:
    assert optimizer(name, None, {}, [parameter()]).defaults["lr"] == OPTIMIZERS[name]["lr"]
    assert optimizer(name, 0.25, {}, [parameter()]).defaults["lr"] == 0.25
    assert type(optimizer(name, None, {}, [parameter()])) is getattr(torch.optim, name)


def test_sgd_step_with_momentum() -> None:
    weight = parameter()
    sgd = optimizer("SGD", 0.1, {}, [weight])
    for expected in (1 - 0.1, 0.9 - 0.1 * 1.9):  # gradient 1; the second step carries 0.9 of the first
        weight.grad = torch.tensor([1.0])
        sgd.step()
        assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("arguments", [{"SGD": {"momentum": 0.0}}, {"SGD": {"momentum": 0.5}}])
def test_the_default_schedule_keeps_the_momentum(arguments: dict[str, Any]) -> None:
    sgd = optimizer("SGD", 0.1, arguments, [parameter()])
    plan = schedule("OneCycleLR", {}, sgd, 10)
    for _ in range(10):
        assert sgd.param_groups[0]["momentum"] == arguments["SGD"]["momentum"]
        sgd.step()
        plan.step()


def rates(name: str, arguments: dict[str, Any], steps: int) -> list[float]:
    sgd = optimizer("SGD", 0.1, {}, [parameter()])
    plan = schedule(name, {name: arguments}, sgd, steps)
    seen = []
    for _ in range(steps):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        plan.step()
    return seen


def test_constant_schedule() -> None:
    assert rates("ConstantLR", {}, 6) == [0.1] * 6


def test_one_cycle_schedule() -> None:
    # torch's defaults: from a 25th up to the peak in 30 % of the steps, then down to a 10,000th of the start; cosines.
    start, peak, end = 0.1 / 25, 0.1, 0.1 / 25 / 1e4
    up = [peak + (start - peak) / 2 * (1 + math.cos(math.pi * t / 2)) for t in range(2)]
    down = [end + (peak - end) / 2 * (1 + math.cos(math.pi * t / 7)) for t in range(8)]
    assert rates("OneCycleLR", {}, 10) == pytest.approx(up + down)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: criterion("CrossEntropy", {}, 2, CPU),
            r"train\.loss\.name: 'CrossEntropy' is unknown \(did you mean Cross",
        ),
        (lambda: criterion("CrossEntropy", {}, 2, CPU), f"accepted: {', '.join(LOSSES)}"),
        (lambda: optimizer("Adamw", None, {}, [parameter()]), f"accepted: {', '.join(OPTIMIZERS)}"),
        (
            lambda: schedule("Cosine", {}, optimizer("SGD", 1.0, {}, [parameter()]), 9),
            f"accepted: {', '.join(SCHEDULES)}",
        ),
        (lambda: criterion("NLLLoss", {"MSE": {}}, 2, CPU), r"train\.loss\.arguments: 'MSE' is unknown"),
        (
            lambda: optimizer("SGD", None, {"SGD": {"momentun": 0.9}}, [parameter()]),
            r"train\.optimizer\.arguments\.SGD\.momentun: .*\(did you mean momentum\?\); accepted: momentum, ",
        ),
        (lambda: optimizer("SGD", None, {"SGD": {"lr": 1}}, [parameter()]), r"SGD\.lr: not an argument to give here"),
        (lambda: optimizer("SGD", None, {"SGD": {"momentum": -1}}, [parameter()]), "SGD refuses .*Invalid momentum"),
        (
            lambda: criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"label_smoothing": "much"}}, 2, CPU),
            "CrossEntropyLoss refuses .*'label_smoothing' .* must be float",
        ),
        (
            lambda: criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"weight": [1.0, 2.0, 3.0]}}, 2, CPU),
            "for 2 classes: weight tensor",
        ),
        (
            lambda: criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"weight": ["a", "b"]}}, 2, CPU),
            r"CrossEntropyLoss refuses \{'weight': \['a', 'b'\]\}",
        ),
        (
            lambda: optimizer("Adam", None, {"Adam": {"betas": [0.9]}}, [parameter()]),
            r"Adam refuses \{'betas': \[0.9\]\}",
        ),
        (
            lambda: schedule(
                "OneCycleLR", {"OneCycleLR": {"div_factor": 0}}, optimizer("SGD", 1.0, {}, [parameter()]), 9
            ),
            "OneCycleLR refuses .*'div_factor': 0.*ZeroDivisionError",
        ),
        (
            lambda: schedule(
                "OneCycleLR", {"OneCycleLR": {"last_epoch": 3}}, optimizer("SGD", 1.0, {}, [parameter()]), 9
            ),
            "last_epoch: not an argument to give here",
        ),
        (
            lambda: criterion("NLLLoss", {"NLLLoss": {"reduction": "none"}}, 2, CPU),
            r"NLLLoss\.reduction: not an argument to give here",
        ),
    ],
)
def test_wrong_choices_are_named(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()

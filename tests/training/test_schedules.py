"""The learning rates of every schedule, in a table; and the walk through torch.optim.lr_scheduler."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from stages.base.errors import InputError
from stages.training.optimizers import optimizer
from stages.training.schedules import AFTER_BATCHES, REFUSED, SCHEDULES, schedule


def sgd(arguments: dict[str, Any] | None = None) -> torch.optim.Optimizer:
    return optimizer("SGD", 0.1, {"SGD": arguments or {}}, [nn.Parameter(torch.ones(1))])


def rates(
    name: str, arguments: dict[str, Any], epochs: int, steps: int, losses: list[float], warmup_epochs: int = 0
) -> list[list[float]]:
    """The learning rate of each step, an epoch a list, where the validation loss after each is as given."""
    built = sgd()
    plan = schedule(name, {name: arguments}, built, epochs, steps, warmup_epochs)
    seen: list[list[float]] = []
    for loss in losses:
        seen.append([])
        for _ in range(steps):
            seen[-1].append(built.param_groups[0]["lr"])
            built.step()
            plan.after_batch()
        plan.after_epoch(loss)
    return seen


def test_every_schedule_of_torch_is_used_or_refused() -> None:
    ours = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and "LRScheduler" not in name
    }
    assert ours == set(SCHEDULES) | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_schedules_say_why(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"train\.schedule\.name: '{name}' cannot be used: {REFUSED[name]}; accepted: "
    ):
        schedule(name, {}, sgd(), 1, 1)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ConstantLR", {}, [1, 1, 1, 1, 1, 1]),
        ("ConstantLR", {"factor": 0.5, "total_iters": 2}, [0.5, 0.5, 1, 1, 1, 1]),
        ("CosineAnnealingLR", {}, [(1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]),
        ("CosineAnnealingWarmRestarts", {}, [1, 0.5, 1, 0.5, 1, 0.5]),
        ("ExponentialLR", {}, [0.01 ** (t / 6) for t in range(6)]),
        ("ExponentialLR", {"gamma": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ("LinearLR", {}, [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("MultiStepLR", {}, [1, 1, 1, 0.1, 0.01, 0.01]),
        ("PolynomialLR", {}, [((6 - t) / 6) ** 2 for t in range(6)]),
        ("StepLR", {}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("StepLR", {"step_size": 3, "gamma": 0.5}, [1, 1, 1, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules_of_six_epochs(name: str, arguments: dict[str, Any], expected: list[float]) -> None:
    seen = rates(name, arguments, 6, 2, [1.0] * 6)
    assert [first for first, _ in seen] == pytest.approx([0.1 * share for share in expected])
    assert all(first == second for first, second in seen), "it moves between epochs alone"


def test_plateau_waits_for_the_validation_loss() -> None:
    losses = [1.0, 0.9, 0.9, 0.9, 0.9, 0.8]
    seen = rates("ReduceLROnPlateau", {"factor": 0.5, "patience": 1}, 6, 1, losses)
    # The second epoch in a row that is no better than the best, and then the two after it.
    assert [rate for [rate] in seen] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_one_cycle_moves_every_step() -> None:
    # torch's defaults: from a 25th up to the peak in 30 % of the steps, then down to a 10,000th of the start; cosines.
    start, peak, end = 0.1 / 25, 0.1, 0.1 / 25 / 1e4
    up = [peak + (start - peak) / 2 * (1 + math.cos(math.pi * t / 2)) for t in range(2)]
    down = [end + (peak - end) / 2 * (1 + math.cos(math.pi * t / 7)) for t in range(8)]
    seen = rates("OneCycleLR", {}, 5, 2, [1.0] * 5)
    assert [rate for epoch in seen for rate in epoch] == pytest.approx(up + down)


def test_cyclic_goes_up_and_down_twice() -> None:
    seen = [rate for epoch in rates("CyclicLR", {}, 4, 4, [1.0] * 4) for rate in epoch]
    rising = [0.1 / 25 + (0.1 - 0.1 / 25) * t / 4 for t in range(4)]
    falling = [0.1 - (0.1 - 0.1 / 25) * t / 4 for t in range(4)]
    assert seen == pytest.approx((rising + falling) * 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warm_up_rises_to_the_schedule_that_the_other_epochs_have(name: str) -> None:
    losses = [1.0] * 6
    alone = rates(name, {}, 4, 3, losses[2:])
    warm = rates(name, {}, 6, 3, losses, warmup_epochs=2)
    assert warm[2:] == alone
    start = alone[0][0]
    assert [rate for epoch in warm[:2] for rate in epoch] == pytest.approx([start * n / 7 for n in range(1, 7)])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_any_length_and_several_groups_keep_the_momentum(name: str, epochs: int) -> None:
    one, two = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    for built in (sgd({"momentum": 0.5}), optimizer("Muon", None, {}, [one, two])):
        plan = schedule(name, {}, built, epochs, 3)
        for _ in range(epochs):
            for _ in range(3):
                assert all(0 <= group["lr"] <= built.defaults["lr"] * 1.0001 for group in built.param_groups)
                assert built.param_groups[0]["momentum"] == built.defaults["momentum"]
                built.step()
                plan.after_batch()
            plan.after_epoch(1.0)


def test_two_schedules_advance_after_batches_as_torch_s_documentation_has_it() -> None:
    for name in SCHEDULES:
        text = getattr(lr_scheduler, name).__doc__ or ""
        assert (name in AFTER_BATCHES) == ("after a batch has been used" in text), name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Cosine", {}, f"accepted: {', '.join(SCHEDULES)}"),
        ("OneCycleLR", {"div_factor": 0}, "OneCycleLR refuses .*'div_factor': 0.*ZeroDivisionError"),
        ("OneCycleLR", {"last_epoch": 3}, "last_epoch: not an argument to give here"),
        ("OneCycleLR", {"max_lr": 3}, r"max_lr: not an argument to give here; accepted: pct_start, "),
        ("StepLR", {"stepsize": 3}, r"StepLR\.stepsize: .* \(did you mean step_size\?\); accepted: step_size, gamma"),
        ("StepLR", {"step_size": 0}, "StepLR refuses .*ZeroDivisionError"),
        ("StepLR", {"step_size": 1, "gamma": "x"}, "StepLR refuses .*TypeError"),
        ("ReduceLROnPlateau", {"patience": "3"}, "ReduceLROnPlateau refuses .*TypeError"),
        ("ReduceLROnPlateau", {"factor": 2.0}, "ReduceLROnPlateau refuses .*Factor should be < 1.0"),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}, "CosineAnnealingWarmRestarts refuses .*Expected positive integer"),
    ],
)
def test_wrong_choices_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(name, {name: arguments} if arguments else {}, sgd(), 3, 3)

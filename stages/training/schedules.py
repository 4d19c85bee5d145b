"""The learning-rate schedules of torch.optim.lr_scheduler that params.yaml can name.

Each advances as torch's documentation has it: OneCycleLR and CyclicLR after every batch, all others after every epoch.
So what their arguments count, such as StepLR's step_size, are steps for those two and epochs for the others.
"""

from typing import Any

import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from stages.base.registry import build, check_names, class_of, settings
from stages.training.optimizers import uncompiled


def defaults(n: int, peaks: list[float]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each class for a training of `n` epochs, for AFTER_BATCHES of `n` steps.

    `peaks` are the learning rates of the optimizer's groups of parameters.
    """
    return {
        "ConstantLR": {"factor": 1.0},  # torch's would start at a third
        "CosineAnnealingLR": {"T_max": n},
        "CosineAnnealingWarmRestarts": {"T_0": max(1, n // 3)},
        # torch's CyclicLR and OneCycleLR would replace the momentum that the optimizer was given.
        "CyclicLR": {
            "base_lr": [peak / 25 for peak in peaks],
            "max_lr": peaks,
            "step_size_up": max(1, n // 4),
            "cycle_momentum": False,
        },
        "ExponentialLR": {"gamma": 0.01 ** (1 / n)},  # to a hundredth in the end
        "LinearLR": {"start_factor": 1.0, "end_factor": 1 / n, "total_iters": max(1, n - 1)},
        "MultiStepLR": {"milestones": [n // 2, n * 3 // 4]},
        "OneCycleLR": {
            "max_lr": peaks,
            "total_steps": n,
            "epochs": None,
            "steps_per_epoch": None,
            "cycle_momentum": False,
        },
        "PolynomialLR": {"total_iters": n, "power": 2.0},
        "ReduceLROnPlateau": {"patience": max(1, n // 10)},
        "StepLR": {"step_size": -(-n // 3)},
    }


SCHEDULES = tuple(defaults(1, [1.0]))
AFTER_BATCHES = ("CyclicLR", "OneCycleLR")
# What follows from the optimizer and the length of the training alone.
DERIVED = ("max_lr", "total_steps", "epochs", "steps_per_epoch", "last_epoch")

_FUNCTION = "it takes a function, which params.yaml cannot hold"
_OTHERS = "it is made of other schedules, and params.yaml names one"
# Class name: why it cannot be used here.
REFUSED = {
    "ChainedScheduler": _OTHERS,
    "LambdaLR": _FUNCTION,
    "MultiplicativeLR": _FUNCTION,
    "SequentialLR": _OTHERS,
}


class Schedule:
    """Sets the learning rates: over the first epochs, the warm-up, they rise in a line to where the scheduler starts.

    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    """

    def __init__(
        self, scheduler: lr_scheduler.LRScheduler, settings: dict[str, Any], warmup_epochs: int, steps: int
    ) -> None:
        """`settings` are all arguments of its class, and `steps` those of an epoch."""
        self.settings, self._scheduler = settings, scheduler
        self._is_of_batches = type(scheduler).__name__ in AFTER_BATCHES
        self._warmup_epochs, self._warmup_batches = warmup_epochs, warmup_epochs * steps
        self._epochs = self._batches = 0
        self._starts = [group["lr"] for group in scheduler.optimizer.param_groups]
        self._warm_up()

    def after_batch(self) -> None:
        self._batches += 1
        if self._batches <= self._warmup_batches:
            self._warm_up()
        elif self._is_of_batches:
            self._scheduler.step()

    def after_epoch(self, valid_loss: float) -> None:
        """`valid_loss` is that of the validation split."""
        self._epochs += 1
        if self._epochs <= self._warmup_epochs or self._is_of_batches:
            return
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(valid_loss)
        else:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""
        return {"scheduler": self._scheduler.state_dict(), "epochs": self._epochs, "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scheduler.load_state_dict(state["scheduler"])
        self._epochs, self._batches = state["epochs"], state["batches"]

    def _warm_up(self) -> None:
        """Set the rates of the next batch; after the last one of the warm-up those that the scheduler started with."""
        share = min(1.0, (self._batches + 1) / (self._warmup_batches + 1))
        for group, start in zip(self._scheduler.optimizer.param_groups, self._starts, strict=True):
            group["lr"] = share * start


def schedule(
    name: str,
    arguments: dict[str, dict[str, Any]],
    optimizer: optim.Optimizer,
    epochs: int,
    steps: int,
    warmup_epochs: int = 0,
) -> Schedule:
    """Return the schedule over `epochs` of `steps` batches each, the first of them its warm-up.

    Raises InputError for an unknown name or argument.
    """
    check_names("train.schedule", name, arguments, SCHEDULES, REFUSED)
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    epochs -= warmup_epochs
    ours = defaults(epochs * steps if name in AFTER_BATCHES else epochs, peaks)[name]
    derived = {key: value for key, value in ours.items() if key in DERIVED}
    derived |= {"last_epoch": -1} if name != "ReduceLROnPlateau" else {}
    given = {key: value for key, value in ours.items() if key not in DERIVED} | arguments.get(name, {})
    # Some arguments are looked at only when it advances.
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": peak} for peak in peaks]
    stand_in = uncompiled(optim.SGD(groups, momentum=0.5))
    cls = class_of("train.schedule", name, lr_scheduler)
    built = build("train.schedule", cls, [optimizer], derived, given, trial=lambda make: _advance(make(stand_in)))
    return Schedule(built, settings(cls, derived | given), warmup_epochs, steps)


def _advance(tried: lr_scheduler.LRScheduler) -> None:
    tried.optimizer.step()
    if isinstance(tried, lr_scheduler.ReduceLROnPlateau):
        for _ in range(2):
            tried.step(1.0)
    else:
        tried.step()

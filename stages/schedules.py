"""The learning-rate schedules of torch.optim.lr_scheduler that params.yaml can name. All advance once a step."""

from typing import Any

from torch import optim
from torch.optim import lr_scheduler

from stages.choices import build, check_names

# Class name: defaults. torch's ConstantLR would start at a third of the learning rate, and its OneCycleLR would replace
# the momentum that the optimizer was given.
SCHEDULES: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 1.0},
    "OneCycleLR": {"cycle_momentum": False},
}


def schedule(
    name: str, arguments: dict[str, dict[str, Any]], optimizer: optim.Optimizer, steps: int
) -> lr_scheduler.LRScheduler:
    """Return the schedule over `steps` steps in all. Raises InputError for an unknown name or argument."""
    check_names("train.schedule", name, arguments, SCHEDULES)
    derived: dict[str, Any] = {"last_epoch": -1}
    if name == "OneCycleLR":
        derived |= {"max_lr": optimizer.defaults["lr"], "total_steps": steps}
    built: lr_scheduler.LRScheduler = build(
        "train.schedule", getattr(lr_scheduler, name), [optimizer], derived, SCHEDULES[name] | arguments.get(name, {})
    )
    return built

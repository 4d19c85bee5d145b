"""The optimizers of torch.optim that params.yaml can name, with the defaults that suit the Net."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from stages.choices import build, check_names

# Class name: defaults. The learning rates are peaks for OneCycleLR with batches of 64.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.03, "momentum": 0.9},
    "Adam": {"lr": 0.003},
    "AdamW": {"lr": 0.003},
}


def optimizer(
    name: str, lr: float | None, arguments: dict[str, dict[str, Any]], parameters: Iterable[nn.Parameter]
) -> optim.Optimizer:
    """Return the optimizer of `parameters`, with its own default for an `lr` of None.

    Raises InputError for an unknown name or argument.
    """
    check_names("train.optimizer", name, arguments, OPTIMIZERS)
    defaults = OPTIMIZERS[name].copy()
    default_lr = defaults.pop("lr")
    derived = {"lr": default_lr if lr is None else lr}
    built: optim.Optimizer = build(
        "train.optimizer", getattr(optim, name), [parameters], derived, defaults | arguments.get(name, {})
    )
    return built

"""The optimizers of torch.optim that params.yaml can name, with the defaults that suit the Net."""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn, optim

from stages.base.errors import InputError
from stages.base.registry import build, check_names, class_of
from stages.training.finetuning import Group
from stages.training.finetuning import groups as groups_of

# Class name: defaults. The learning rates are peaks for OneCycleLR with batches of 64.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.3},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.03},
    "Adagrad": {"lr": 0.03},
    "Adam": {"lr": 0.003},
    "AdamW": {"lr": 0.003},
    "Adamax": {"lr": 0.01},
    # A line search would go to the lowest point for one batch alone, where classes can be shut for good.
    "LBFGS": {"lr": 0.2, "max_iter": 10, "history_size": 10},
    "Muon": {"lr": 0.003, "adjust_lr_fn": "match_rms_adamw"},
    "NAdam": {"lr": 0.003},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.003},
    "Rprop": {"lr": 0.001, "step_sizes": [1e-6, 0.01]},  # torch's steps of up to 50 are for whole data sets at once
    "SGD": {"lr": 0.03, "momentum": 0.9},
}

# Those that torch does in one pass on a CPU, a tenth of the Net's step faster; and the arguments for other ways.
FUSED, OTHER_WAYS = ("Adam", "AdamW"), {"capturable", "differentiable", "foreach", "fused"}

# Class name: why it cannot be used here.
REFUSED = {"SparseAdam": "it takes sparse gradients, which embeddings give and images do not"}

# At their first call torch imports its compiler, to tell it not to compile these; that takes a second.
for _method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    _own = inspect.unwrap(getattr(optim.Optimizer, _method))
    vars(_own).setdefault("__dynamo_disable", _own)


class MuonAndAdamW(optim.Optimizer):
    """Muon for the matrices, the only ones it takes, and AdamW for all other parameters, as one optimizer.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, muon: optim.Optimizer, adamw: optim.Optimizer) -> None:
        # The groups are shared, so what a schedule writes into them here is what the two read.
        super().__init__([*muon.param_groups, *adamw.param_groups], muon.defaults)
        self.defaults = muon.defaults | {"AdamW": adamw.defaults}
        self.parts = (muon, adamw)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the two."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the two the states that `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # which are other ones now

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Evaluate `closure` once, where there is one, and let both take a step. Return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def optimizer(
    name: str,
    lr: float | None,
    arguments: dict[str, dict[str, Any]],
    parameters: Iterable[nn.Parameter],
    learning: Collection[nn.Parameter] | None = None,
    layer_decay: float | None = None,
    decay_on: str = "all",
) -> optim.Optimizer:
    """Return the optimizer of those of a net's `parameters` that are `learning`, by default all.

    An `lr` of None is its own default; `layer_decay` and `decay_on` are as `finetuning.groups` has them. Muon comes
    with an AdamW of the same learning rate and of AdamW's own arguments. Raises InputError for an unknown name or
    argument.
    """
    check_names("train.optimizer", name, arguments, OPTIMIZERS, REFUSED)
    if name == "LBFGS" and layer_decay is not None:
        raise InputError("train.optimizer.layer_decay: LBFGS has one learning rate for all layers; should be null")
    parameters = list(parameters)
    groups = groups_of(parameters, parameters if learning is None else learning, layer_decay, decay_on)
    if name == "Muon":
        matrices, others = (_those(groups, of_matrices) for of_matrices in (True, False))
        if not matrices:
            raise InputError("train.optimizer.name: 'Muon' takes matrices, and this net has none; AdamW takes any")
        muon = _built("Muon", lr, arguments, matrices)
        return MuonAndAdamW(muon, _built("AdamW", muon.defaults["lr"], arguments, others)) if others else muon
    return _built(name, lr, arguments, groups)


def _those(groups: Sequence[Group], of_matrices: bool) -> list[Group]:
    """Return the groups with their matrices alone, or without these; empty ones are left out."""
    found = [
        replace(group, parameters=[one for one in group.parameters if (one.ndim == 2) == of_matrices])
        for group in groups
    ]
    return [group for group in found if group.parameters]


def uncompiled(optimizer: optim.Optimizer) -> optim.Optimizer:
    """Let the optimizer take its class's own step, and return it.

    torch puts around that what imports its compiler, for a second, and what calls hooks, of which there are none here.
    """
    if not optimizer.defaults.get("differentiable"):
        step = inspect.unwrap(type(optimizer).step)
        optimizer.step = MethodType(torch.no_grad()(step), optimizer)  # type: ignore[method-assign]
    return optimizer


def _built(
    name: str, lr: float | None, arguments: dict[str, dict[str, Any]], groups: Sequence[Group]
) -> optim.Optimizer:
    defaults = OPTIMIZERS[name].copy()
    default_lr = defaults.pop("lr")
    lr = default_lr if lr is None else lr
    derived = {"lr": lr}
    given = defaults | arguments.get(name, {})
    # Some arguments are looked at only when a step is taken.
    parameters = [parameter for group in groups for parameter in group.parameters]
    matrix = nn.Parameter(torch.ones(2, 2, device=parameters[0].device))
    cls = class_of("train.optimizer", name, optim)
    taken = inspect.signature(cls).parameters
    of_groups: list[dict[str, Any]] = [{"params": group.parameters, "lr": lr * group.rate} for group in groups]
    for own, group in zip(of_groups, groups, strict=True):
        if not group.is_decayed and "weight_decay" in taken:
            own["weight_decay"] = 0.0
    if name == "LBFGS":  # which takes no groups
        of_groups = [{"params": parameters}]
    built: optim.Optimizer = build(
        "train.optimizer", cls, [of_groups], derived, given, trial=lambda make: _two_steps(make([matrix]))
    )
    # It takes no account of how a parameter lies in memory.
    simple = all(parameter.device.type == "cpu" and parameter.is_contiguous() for parameter in parameters)
    if name in FUSED and simple and not given.keys() & OTHER_WAYS:
        for defaults_or_group in (built.defaults, *built.param_groups):
            defaults_or_group["fused"] = True
    return uncompiled(built)


def _two_steps(tried: optim.Optimizer) -> None:
    uncompiled(tried)
    [parameter] = tried.param_groups[0]["params"]

    def closure() -> Tensor:
        tried.zero_grad()
        loss: Tensor = parameter.square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        tried.step(closure)  # type: ignore[arg-type]

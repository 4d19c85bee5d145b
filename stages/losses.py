"""The losses of torch.nn that params.yaml can name, each with what it needs from the Net's scores."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stages.choices import build, check_names
from stages.command import InputError

Criterion = Callable[[Tensor, Tensor], Tensor]

# Class name: what comes before the loss. NLLLoss wants log-probabilities; log_softmax leaves those as they are.
LOSSES: dict[str, nn.Module] = {
    "CrossEntropyLoss": nn.Identity(),
    "NLLLoss": nn.LogSoftmax(dim=1),
}

# The mean over the batch, by torch's present argument; the two that it replaced are not to be given either.
MEAN = {"reduction": "mean", "size_average": None, "reduce": None}


def criterion(name: str, arguments: dict[str, dict[str, Any]], n_classes: int, device: torch.device) -> Criterion:
    """Return the loss, a function of scores, float (n, n_classes), and labels, int64 (n,), that gives one float, ().

    Raises InputError for an unknown name, an unknown argument or a value that the class refuses.
    """
    check_names("train.loss", name, arguments, LOSSES)
    given = arguments.get(name, {})
    before = LOSSES[name]

    def of(scores: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = loss(before(scores), labels)
        return value

    # Most arguments are looked at only when the loss is used, so use it once before anything is trained.
    try:
        tensors = {
            key: torch.tensor(value, dtype=torch.float) for key, value in given.items() if isinstance(value, list)
        }
        loss = build("train.loss", getattr(nn, name), (), MEAN, given | tensors).to(device)
        of(torch.zeros(1, n_classes, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"train.loss: {name} refuses {given} for {n_classes} classes: {error}") from error
    return of

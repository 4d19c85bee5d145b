"""The losses of torch.nn that params.yaml can name, each with what it needs from the Net's scores."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stages.choices import build, check_names

Criterion = Callable[[Tensor, Tensor], Tensor]

# Class name: what comes before the loss. NLLLoss wants log-probabilities; log_softmax leaves those as they are.
LOSSES: dict[str, nn.Module] = {
    "CrossEntropyLoss": nn.Identity(),
    "NLLLoss": nn.LogSoftmax(dim=1),
}


def criterion(name: str, arguments: dict[str, dict[str, Any]], device: torch.device) -> Criterion:
    """Return the loss: scores, float (n, n_classes), and labels, int64 (n,), to the mean over the batch, float ().

    Raises InputError for an unknown name or argument.
    """
    check_names("train.loss", name, arguments, LOSSES)
    given = {
        key: torch.tensor(value) if isinstance(value, list) else value for key, value in arguments.get(name, {}).items()
    }
    loss = build("train.loss", getattr(nn, name), (), {}, given).to(device)
    before = LOSSES[name]
    return lambda scores, labels: loss(before(scores), labels)

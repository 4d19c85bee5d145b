"""The losses of torch.nn that params.yaml can name, each with what it is fed with, and why the others are refused."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base.errors import InputError
from stages.base.registry import build, check_names

Criterion = Callable[[Tensor, Tensor], Tensor]

# What becomes of the Net's scores, float (n, n_classes), on the way to the loss. log_softmax leaves log-probabilities
# as they are, so a Net that ends in it is served too.
INPUTS: dict[str, nn.Module] = {
    "scores": nn.Identity(),
    "log-probabilities": nn.LogSoftmax(dim=1),
    "a sigmoid of each score": nn.Sigmoid(),
}


def _one_hot(targets: Tensor, n_classes: int) -> Tensor:
    return targets if targets.is_floating_point() else F.one_hot(targets, n_classes).float()


def _signed(targets: Tensor, n_classes: int) -> Tensor:
    return 2 * _one_hot(targets, n_classes) - 1


def _index(targets: Tensor, _n_classes: int) -> Tensor:
    return targets


def _listed(targets: Tensor, n_classes: int) -> Tensor:
    return F.pad(targets[:, None], (0, n_classes - 1), value=-1)


# What becomes of the labels, int64 (n,), or of mixed ones, float (n, n_classes).
TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "class index": _index,
    "class index, or shares of the classes": _index,
    "list of one class": _listed,
    "one-hot": _one_hot,
    "+1 for the class, -1 for the others": _signed,
}

# Class name: input, targets.
LOSSES: dict[str, tuple[str, str]] = {
    "BCELoss": ("a sigmoid of each score", "one-hot"),
    "BCEWithLogitsLoss": ("scores", "one-hot"),
    "CrossEntropyLoss": ("scores", "class index, or shares of the classes"),
    "HuberLoss": ("scores", "one-hot"),
    "KLDivLoss": ("log-probabilities", "one-hot"),
    "L1Loss": ("scores", "one-hot"),
    "MSELoss": ("scores", "one-hot"),
    "MultiLabelMarginLoss": ("scores", "list of one class"),
    "MultiLabelSoftMarginLoss": ("scores", "one-hot"),
    "MultiMarginLoss": ("scores", "class index"),
    "NLLLoss": ("log-probabilities", "class index"),
    "PoissonNLLLoss": ("log-probabilities", "one-hot"),
    "SmoothL1Loss": ("scores", "one-hot"),
    "SoftMarginLoss": ("scores", "+1 for the class, -1 for the others"),
}

PAIRS = "it compares pairs of inputs"
TRIPLETS = "it compares triplets of inputs"
LAYER = "it has a last layer of its own, which the Net has already"

# Class name: why it cannot train a classifier of images here.
REFUSED: dict[str, str] = {
    "AdaptiveLogSoftmaxWithLoss": LAYER,
    "CTCLoss": "it aligns sequences",
    "CosineEmbeddingLoss": PAIRS,
    "GaussianNLLLoss": "it wants a variance beside each prediction; with equal variances it is MSELoss",
    "HingeEmbeddingLoss": "it takes distances between pairs of inputs",
    "LinearCrossEntropyLoss": LAYER,
    "MarginRankingLoss": PAIRS,
    "NLLLoss2d": "it is torch's old name of NLLLoss",
    "TripletMarginLoss": TRIPLETS,
    "TripletMarginWithDistanceLoss": TRIPLETS,
}


def output(name: str) -> str:
    """Return what the Net should end in: "relu", or "logits" if to this loss a score's sign or size means something.

    The losses of log-probabilities and of margins see only how much higher one score is than another.
    """
    fed, expected = LOSSES.get(name, ("scores", "class index"))
    return "relu" if fed == "log-probabilities" or TARGETS[expected] in (_index, _listed) else "logits"


def criterion(
    name: str, arguments: dict[str, dict[str, Any]], n_classes: int, device: torch.device, mixed: bool = False
) -> Criterion:
    """Return the loss, a function of scores, float (n, n_classes), and targets, that gives one float, ().

    Targets are labels, int64 (n,), or of `mixed` images the shares of the classes, float (n, n_classes). The value is
    the mean over the images; where torch's class gives one value for each score, these are summed over the classes.

    Raises InputError for an unknown name, an unknown argument or a value that the class refuses.
    """
    check_names("train.loss", name, arguments, LOSSES, REFUSED)
    given = arguments.get(name, {})
    fed, expected = LOSSES[name]
    of_index = TARGETS[expected] in (_index, _listed)
    if mixed and of_index and "shares" not in expected:
        able = [other for other, (_, targets) in LOSSES.items() if "index" not in targets and "list" not in targets]
        raise InputError(
            f"train.loss.name: {name!r} takes one class an image, but MixUp and CutMix give shares of several;"
            f" accepted with these: CrossEntropyLoss, {', '.join(able)}"
        )

    def of(scores: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = loss(INPUTS[fed](scores), TARGETS[expected](targets, n_classes))
        return value if of_index else value / len(scores)

    # The rest describe what the loss is fed with, or are torch's older names of `reduction`.
    derived: dict[str, Any] = {"reduction": "mean" if of_index else "sum", "size_average": None, "reduce": None}
    derived |= {"log_target": False, "log_input": True}
    taken = inspect.signature(getattr(nn, name)).parameters
    # Most arguments are looked at only when the loss is used, so use it once before anything is trained.
    try:
        tensors = {
            key: torch.tensor(value, dtype=torch.float) for key, value in given.items() if isinstance(value, list)
        }
        derived = {key: value for key, value in derived.items() if key in taken}
        loss = build("train.loss", getattr(nn, name), (), derived, given | tensors).to(device)
        label = torch.zeros(1, dtype=torch.int64, device=device)
        of(torch.zeros(1, n_classes, device=device), _one_hot(label, n_classes) if mixed else label)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"train.loss: {name} refuses {given} for {n_classes} classes: {error}") from error
    return of

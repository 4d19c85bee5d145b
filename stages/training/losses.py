"""The losses of torch.nn that params.yaml can name, each with what it is fed with, and why the others are refused."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base.errors import InputError
from stages.base.registry import build, check_names, class_of, settings


@dataclass(frozen=True)
class Input:
    """What becomes of the net's scores, float (n, n_classes), on their way to the loss."""

    name: str
    layer: nn.Module


@dataclass(frozen=True)
class Target:
    """What becomes of the labels, int64 (n,), or of mixed ones, float (n, n_classes)."""

    name: str
    encode: Callable[[Tensor, int], Tensor]  # takes them and the number of classes
    is_one_class: bool  # whether it names one class an image, of which torch's loss takes the mean over the images
    can_be_shares: bool  # whether it can say that an image is of several classes, in shares


@dataclass(frozen=True)
class Loss:
    """How a class of torch.nn, or your `own`, is used as a classifier's loss."""

    input: Input
    target: Target
    own: type[nn.Module] | None = None
    takes_softmax: bool = False  # whether it makes log-probabilities of the scores itself

    @property
    def gives_probabilities(self) -> bool:
        """Whether it trains scores whose softmax is each class's probability: others have no calibration."""
        return self.takes_softmax or self.input is LOG_PROBABILITIES


@dataclass(frozen=True)
class Criterion:
    """A loss that was chosen: a function of scores and targets."""

    loss: Loss
    n_classes: int
    module: nn.Module
    settings: dict[str, Any]  # all arguments of its class
    class_weights: Tensor | None = None  # float (n_classes,): how much an image of each class counts

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return one float, (), for scores, float (n, n_classes).

        Targets are labels, int64 (n,), or of mixed images the shares of the classes, float (n, n_classes). The value is
        the mean over the images; where torch's class gives one value for each score, these are summed over the classes.
        With `class_weights` each image's value is multiplied by its class's weight, or by the mean of a mixed one's.
        """
        value: Tensor = self.module(self.loss.input.layer(scores), self.loss.target.encode(targets, self.n_classes))
        if self.class_weights is not None:
            of_images = value.reshape(len(scores), -1).sum(1)
            mixed = targets.is_floating_point()
            weights = targets @ self.class_weights if mixed else self.class_weights[targets]
            return (weights * of_images).sum() / len(scores)
        if value.ndim:
            raise ValueError(f"it gives {tuple(value.shape)} numbers, should be one")
        return value if self.loss.target.is_one_class else value / len(scores)


def _index(targets: Tensor, _n_classes: int) -> Tensor:
    return targets


def _list_of_one(targets: Tensor, n_classes: int) -> Tensor:
    return F.pad(targets[:, None], (0, n_classes - 1), value=-1)


def _one_hot(targets: Tensor, n_classes: int) -> Tensor:
    return targets if targets.is_floating_point() else F.one_hot(targets, n_classes).float()


def _signed(targets: Tensor, n_classes: int) -> Tensor:
    return 2 * _one_hot(targets, n_classes) - 1


SCORES = Input("scores", nn.Identity())
# log_softmax leaves log-probabilities as they are, so a Net that ends in it is served too.
LOG_PROBABILITIES = Input("log-probabilities", nn.LogSoftmax(dim=1))
SIGMOID = Input("a sigmoid of each score", nn.Sigmoid())

INDEX = Target("class index", _index, is_one_class=True, can_be_shares=False)
INDEX_OR_SHARES = Target("class index, or shares of the classes", _index, is_one_class=True, can_be_shares=True)
LIST_OF_ONE = Target("list of one class", _list_of_one, is_one_class=True, can_be_shares=False)
ONE_HOT = Target("one-hot", _one_hot, is_one_class=False, can_be_shares=True)
SIGNED = Target("+1 for the class, -1 for the others", _signed, is_one_class=False, can_be_shares=True)

LOSSES = {
    "BCELoss": Loss(SIGMOID, ONE_HOT),
    "BCEWithLogitsLoss": Loss(SCORES, ONE_HOT),
    "CrossEntropyLoss": Loss(SCORES, INDEX_OR_SHARES, takes_softmax=True),
    "HuberLoss": Loss(SCORES, ONE_HOT),
    "KLDivLoss": Loss(LOG_PROBABILITIES, ONE_HOT),
    "L1Loss": Loss(SCORES, ONE_HOT),
    "MSELoss": Loss(SCORES, ONE_HOT),
    "MultiLabelMarginLoss": Loss(SCORES, LIST_OF_ONE),
    "MultiLabelSoftMarginLoss": Loss(SCORES, ONE_HOT),
    "MultiMarginLoss": Loss(SCORES, INDEX),
    "NLLLoss": Loss(LOG_PROBABILITIES, INDEX),
    "PoissonNLLLoss": Loss(LOG_PROBABILITIES, ONE_HOT),
    "SmoothL1Loss": Loss(SCORES, ONE_HOT),
    "SoftMarginLoss": Loss(SCORES, SIGNED),
}

_PAIRS = "it compares pairs of inputs"
_TRIPLETS = "it compares triplets of inputs"
_LAYER = "it has a last layer of its own, which the Net has already"

# Class name: why it cannot train a classifier of images here.
REFUSED: dict[str, str] = {
    "AdaptiveLogSoftmaxWithLoss": _LAYER,
    "CTCLoss": "it aligns sequences",
    "CosineEmbeddingLoss": _PAIRS,
    "GaussianNLLLoss": "it wants a variance beside each prediction; with equal variances it is MSELoss",
    "HingeEmbeddingLoss": "it takes distances between pairs of inputs",
    "LinearCrossEntropyLoss": _LAYER,
    "MarginRankingLoss": _PAIRS,
    "NLLLoss2d": "it is torch's old name of NLLLoss",
    "TripletMarginLoss": _TRIPLETS,
    "TripletMarginWithDistanceLoss": _TRIPLETS,
}


def output(name: str) -> str:
    """Return what the Net should end in: "relu", or "logits" if to this loss a score's sign or size means something.

    The losses of log-probabilities and of margins see only how much higher one score is than another.
    """
    loss = LOSSES.get(name, Loss(SCORES, INDEX))
    return "relu" if loss.input is LOG_PROBABILITIES or loss.target.is_one_class else "logits"


def class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Return by how much to multiply the loss of an image of each class for all classes to weigh alike in the sum.

    `labels` are int64 (n,), the weights float (n_classes,), and over all images their mean is 1. As scikit-learn's
    "balanced", after King and Zeng, "Logistic Regression in Rare Events Data", 2001.
    """
    counts = labels.bincount(minlength=n_classes)
    return counts.sum() / (n_classes * counts.clamp(min=1)).float()


def criterion(
    name: str,
    arguments: dict[str, dict[str, Any]],
    n_classes: int,
    device: torch.device,
    mixed: bool = False,
    class_weights: Tensor | None = None,
) -> Criterion:
    """Return the loss for labels, or for the targets of `mixed` images; `class_weights` are as a Criterion has them.

    Raises InputError for an unknown name, an unknown argument or a value that the class refuses.
    """
    check_names("train.loss", name, arguments, LOSSES, REFUSED)
    loss = LOSSES[name]
    cls = class_of("train.loss", name, nn, loss.own)
    if mixed and not loss.target.can_be_shares:
        able = sorted(LOSSES, key=lambda other: (other != "CrossEntropyLoss", other))
        raise InputError(
            f"train.loss.name: {name!r} takes one class an image, but MixUp and CutMix give shares of several;"
            f" accepted with these: {', '.join(other for other in able if LOSSES[other].target.can_be_shares)}"
        )

    # The rest describe what the loss is fed with, or are torch's older names of `reduction`.
    reduction = "none" if class_weights is not None else "mean" if loss.target.is_one_class else "sum"
    derived: dict[str, Any] = {"reduction": reduction, "size_average": None}
    derived |= {"reduce": None, "log_target": False, "log_input": True}
    taken = inspect.signature(cls).parameters
    if class_weights is not None and "reduction" not in taken:
        raise InputError(f"train.balance: 'loss' needs torch's argument `reduction`, and {name} has none; try sampling")
    label = torch.zeros(1, dtype=torch.int64, device=device)
    derived, given = {key: value for key, value in derived.items() if key in taken}, arguments.get(name, {})
    built = build(
        "train.loss",
        cls,
        (),
        derived,
        given,
        trial=lambda make: Criterion(loss, n_classes, make().to(device), {}, class_weights)(
            torch.zeros(1, n_classes, device=device), _one_hot(label, n_classes) if mixed else label
        ),
        convert=lambda value: torch.tensor(value, dtype=torch.float) if isinstance(value, list) else value,
        purpose=f"for {n_classes} classes",
    )
    return Criterion(loss, n_classes, built.to(device), settings(cls, derived | given), class_weights)

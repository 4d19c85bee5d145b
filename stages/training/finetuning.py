"""What of a net learns, and how fast: layers that are frozen, rates that fall towards the first layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

from torch import nn

from stages.base.errors import InputError

NOTHING, ALL_BUT_HEAD = "none", "all_but_head"  # what train.freeze says besides a number of epochs


class Freezing:
    """Keeps all of a net but its last layer as it is, for the whole training or for its first epochs.

    What is frozen is as in prediction: no gradient, norms by the averages that they have, no dropout. Its tensors, the
    buffers of norms among them, keep every bit.
    """

    def __init__(self, net: nn.Module, head: set[str], freeze: str | int) -> None:
        """`head` are the names of the last layer's tensors. Raises InputError if there are none to be trained alone."""
        self._net, self._head, self._freeze = net, head, freeze
        if freeze != NOTHING and not any(name in self._head for name, _ in net.named_parameters()):
            raise InputError(f"train.freeze: {freeze!r}, but no layer of this net depends on the number of classes")

    @property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that learn in the end."""
        named = self._net.named_parameters()
        return [parameter for name, parameter in named if self._freeze != ALL_BUT_HEAD or name in self._head]

    def begin(self, epoch: int) -> None:
        """Put the net into the mode for training that it has in this epoch, the first is 1."""
        is_frozen = self._freeze == ALL_BUT_HEAD or (isinstance(self._freeze, int) and epoch <= self._freeze)
        self._net.train(not is_frozen)  # the head itself is a layer that is the same in both modes
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(not is_frozen or name in self._head)


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike."""

    parameters: list[nn.Parameter]
    rate: float = 1.0  # of the learning rate
    is_decayed: bool = True  # by the optimizer's weight decay


def groups(
    parameters: Iterable[nn.Parameter], learning: Iterable[nn.Parameter], layer_decay: float | None, decay_on: str
) -> list[Group]:
    """Return those of a net's parameters that are `learning`, those of the full rate first.

    With `layer_decay`, each layer has that much of the rate of the one after it: Howard and Ruder, "Universal Language
    Model Fine-tuning for Text Classification", ACL 2018. A layer is a kernel or matrix with the biases and norms that
    follow it. With `decay_on` "weights", biases and norms do not decay: He et al., "Bag of Tricks for Image
    Classification", CVPR 2019.
    """
    decay = 1.0 if layer_decay is None else layer_decay
    parameters, wanted = list(parameters), {id(parameter) for parameter in learning}
    layers = list(accumulate(map(_is_matrix, parameters)))  # the number of each one's layer
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for layer, parameter in zip(layers, parameters, strict=True):
        if id(parameter) in wanted:
            alike = decay ** (layers[-1] - layer), decay_on == "all" or _is_matrix(parameter)
            found.setdefault(alike, []).append(parameter)
    return [Group(members, *alike) for alike, members in sorted(found.items(), key=itemgetter(0), reverse=True)]


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it is a kernel or matrix: other vectors than biases may have dimensions of 1 besides."""
    return sum(size > 1 for size in parameter.shape) > 1

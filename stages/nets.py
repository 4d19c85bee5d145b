"""The Net: convolutions with ReLU and max-pooling, then linear layers. Its default is one of each.

Other names of params.yaml's train.net are the Net with other arguments, and torchvision's models.
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stages import params, vision
from stages.command import InputError
from stages.params import Positive


def _log_softmax(scores: Tensor) -> Tensor:
    return F.log_softmax(scores, dim=1)


OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "logits": nn.Identity(), "log_softmax": _log_softmax}


class Net(nn.Module):
    """A convolutional classifier of square images.

    `Net(n_classes)` takes one 8x8 channel through `conv1` (32 maps, 5x5), ReLU, 2x2 max-pooling and `fc1`, and ends
    in a ReLU. Each of `widths` is a convolution (`conv1`, `conv2`, ...), each of `hidden` a linear layer with ReLU and
    dropout; the last linear layer gives the classes (`fc1`, or `fc2` after one hidden layer, ...).

    `bias_start` fills the last layer's bias. Softmax does not see a shift that all classes share, but a ReLU after
    the last layer does: where a class's score is negative for every image, that class never gets a gradient.

    Raises InputError if the image is too small for the convolutions and poolings, naming the layer.
    """

    def __init__(
        self,
        n_classes: int,
        channels: int = 1,
        image_size: int = 8,
        widths: Sequence[int] = (32,),
        kernel: int = 5,
        pool: int = 2,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        output: str = "relu",
        bias_start: float | None = None,
    ) -> None:
        super().__init__()
        self.dropout, self.output = dropout, output

        # The input size of fc1 follows from what the convolutions and poolings leave of the image.
        side = image_size
        for layer in (f"conv{number}" for number in range(1, len(widths) + 1)):
            side = _shrunk(side, f"{layer} (a {kernel}x{kernel} kernel)", kernel, side - kernel + 1, image_size)
            side = _shrunk(side, f"the pooling after {layer} ({pool}x{pool})", pool, side // pool, image_size)
        flattened = side * side * (widths[-1] if widths else channels)

        self.convolutions: list[str] = []
        for number, (before, after) in enumerate(pairwise([channels, *widths]), start=1):
            self.convolutions.append(f"conv{number}")
            self.add_module(f"conv{number}", nn.Conv2d(before, after, kernel))
            if number == 1:
                self.pool = nn.MaxPool2d(pool, pool)

        self.linears: list[str] = []
        for number, (before, after) in enumerate(pairwise([flattened, *hidden, n_classes]), start=1):
            self.linears.append(f"fc{number}")
            self.add_module(f"fc{number}", nn.Linear(before, after))
        if bias_start is not None:
            nn.init.constant_(self.get_parameter(f"{self.linears[-1]}.bias"), bias_start)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, float (n, n_classes), for images, float (n, channels, image_size, image_size)."""
        for convolution in self.convolutions:
            x = self.pool(F.relu(self.get_submodule(convolution)(x)))
        x = x.flatten(start_dim=1)
        for linear in self.linears[:-1]:
            x = F.dropout(F.relu(self.get_submodule(linear)(x)), self.dropout, self.training)
        return OUTPUTS[self.output](self.get_submodule(self.linears[-1])(x))


def _shrunk(side: int, layer: str, needed: int, left: int, image_size: int) -> int:
    if left < 1:
        raise InputError(
            f"train.net: {layer} needs at least {needed} pixels a side, but of the image's {image_size} only {side}"
            " reach it. Take a smaller kernel or pool, or fewer widths."
        )
    return left


# The Net under other names has other defaults: the two solutions of the course.
COURSE = {"widths": [10, 20], "kernel": 3, "output": "log_softmax"}
NETS: dict[str, dict[str, Any]] = {"Net": {}, "course_1": COURSE, "course_2": COURSE | {"hidden": [50], "dropout": 0.4}}


class Arguments(params.Section):
    """What params.yaml may say of the Net."""

    widths: list[Positive]
    kernel: Positive
    pool: Positive
    hidden: list[Positive]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    output: Literal["auto", "relu", "logits", "log_softmax"]
    bias_start: float | None


def shape(
    name: str, arguments: dict[str, dict[str, Any]], n_classes: int, channels: int, image_size: int, auto: str = "relu"
) -> dict[str, Any]:
    """Return what `build` takes: the net's name, its own arguments, complete for the Net, and its sizes.

    `auto` is the Net's output where that is to be chosen for the loss.

    Raises InputError for unknown names, and for arguments of the Net that are unknown or out of range.
    """
    for where, given in [("train.net.name", name), *(("train.net.arguments", key) for key in arguments)]:
        if given not in NETS and given not in vision.names():
            raise InputError(f"{where}: {given!r} is unknown{vision.unknown_name(given, NETS)}")
    own = arguments.get(name, {})
    if name in NETS:
        defaults = {
            key: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for key, parameter in signature(Net).parameters.items()
            if key in Arguments.model_fields
        }
        own = params.checked(Arguments, defaults | NETS[name] | own, f"train.net.arguments.{name}").model_dump()
        own["output"] = auto if own["output"] == "auto" else own["output"]
    return {"name": name, "arguments": own, "n_classes": n_classes, "channels": channels, "image_size": image_size}


def build(name: str, arguments: dict[str, Any], n_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return a net with random weights, from torch's generator, on the CPU, in training mode.

    It takes float (n, channels, image_size, image_size) and gives float (n, n_classes). Raises InputError if the image
    is too small for it, or it refuses its arguments.
    """
    if name not in NETS:
        return vision.build(name, arguments, n_classes, channels, image_size)
    try:
        return Net(n_classes, channels, image_size, **arguments)
    except RuntimeError as error:  # more memory than there is
        raise InputError(f"train.net: {name} cannot be made with {arguments}: {error}") from error


def initial(shape: dict[str, Any], seed: int) -> nn.Module:
    """Return `build(**shape)` as training starts it, on the CPU, so that a seed means the same on every device."""
    torch.manual_seed(seed)
    return build(**shape)


def head(net: nn.Module, shape: dict[str, Any]) -> set[str]:
    """Return the names of the last layer's tensors: those of `net` whose shapes follow from the number of classes."""
    with torch.random.fork_rng(devices=[]):
        other = build(**shape | {"n_classes": shape["n_classes"] + 1}).state_dict()
    return {name for name, tensor in net.state_dict().items() if tensor.shape != other[name].shape}


def check_batch(net: nn.Module, shape: dict[str, Any], smallest: int) -> None:
    """Raise InputError if `net` cannot be trained on batches of `smallest` images.

    BatchNorm needs more than one value of each channel, and of a small image some models leave one pixel.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        return
    try:
        vision.forward_on_meta(net.train(), smallest, shape["channels"], shape["image_size"])
    except ValueError as error:
        raise InputError(
            f"train.batch_size: an epoch has a batch of {smallest} image{'s' * (smallest > 1)}, of which"
            f" {shape['name']}'s BatchNorm cannot tell a deviation: {error}.\nTake another train.batch_size, or"
            f" larger images than {shape['image_size']}x{shape['image_size']}: prepare.image_size."
        ) from error


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Return those whose filters are worth a picture: all of the Net, of other models the one that sees the image."""
    if isinstance(net, Net):
        return {name: layer for name, layer in net.named_children() if isinstance(layer, nn.Conv2d)}
    return dict([vision.first_convolution(net)])


@torch.no_grad()
def activations(net: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield the name of each of the Net's convolutions, and its maps before ReLU, after it and after pooling.

    Maps are float (n, width, h, w). `x` is what the net takes, float (n, channels, image_size, image_size). Of other
    models, whose layers are not a chain, there are none.
    """
    if not isinstance(net, Net):
        return
    for name in net.convolutions:
        before = net.get_submodule(name)(x)
        after = F.relu(before)
        x = net.pool(after)
        yield name, before, after, x

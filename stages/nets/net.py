"""The Net: convolutions with ReLU and max-pooling, then linear layers. Its default is one of each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base import threads
from stages.base.errors import InputError
from stages.nets.first_layer import first_and_only_layer, first_layer, pooled_convolution, work
from stages.nets.residual import ResidualNet


def _log_softmax(scores: Tensor) -> Tensor:
    return F.log_softmax(scores, dim=1)


OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "logits": nn.Identity(), "log_softmax": _log_softmax}
# Fmas of a forward pass: a step of fewer is faster by one thread. The page's Net has 500,000 an image of 28x28.
WORTH_TWO_THREADS = 1 << 25


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

        self.conv1: nn.Conv2d
        self.fc1: nn.Linear
        self.linears: list[str] = []
        for number, (before, after) in enumerate(pairwise([flattened, *hidden, n_classes]), start=1):
            self.linears.append(f"fc{number}")
            self.add_module(f"fc{number}", nn.Linear(before, after))
        if bias_start is not None:
            nn.init.constant_(self.get_parameter(f"{self.linears[-1]}.bias"), bias_start)

    @property
    def is_one_pass(self) -> bool:
        """Whether it has one convolution and one linear layer, as the page has it."""
        return (self.convolutions, self.linears) == (["conv1"], ["fc1"])

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, float (n, n_classes), for images, float (n, channels, image_size, image_size)."""
        if self.is_one_pass:
            x = first_and_only_layer(x, self.conv1, self.pool, self.fc1)
        else:
            for name in self.convolutions:
                layer = first_layer if name == "conv1" else pooled_convolution
                x = layer(x, self.get_submodule(name), self.pool)  # type: ignore[arg-type]
            x = x.flatten(start_dim=1)
            for name in self.linears[:-1]:
                x = F.dropout(F.relu(self.get_submodule(name)(x)), self.dropout, self.training)
            x = self.get_submodule(self.linears[-1])(x)
        return OUTPUTS[self.output](x)


def threads_of_a_step(
    net: nn.Module, images: int, channels: int, image_size: int
) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a step of so many images: in it torch has one thread where two are not worth it.

    To wake a thread takes longer than its part of the loss, or of a small net's optimizer. It is known of a Net that is
    compiled in one pass, as it is not where torch.autocast is in force; and what is known follows from the sizes alone.
    """
    if type(net) is not Net or not net.is_one_pass:
        return nullcontext
    image = torch.empty(1, channels, image_size, image_size, device=net.fc1.weight.device)
    fmas = images * work(image, net.conv1, net.pool, net.fc1)
    return partial(threads.limited, 1) if 0 < fmas < WORTH_TWO_THREADS else nullcontext


def _shrunk(side: int, layer: str, needed: int, left: int, image_size: int) -> int:
    if left < 1:
        raise InputError(
            f"train.net: {layer} needs at least {needed} pixels a side, but of the image's {image_size} only {side}"
            " reach it. Take a smaller kernel or pool, or fewer widths."
        )
    return left


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


# What train.net.name can name besides torchvision's models: the class or function of this name, or one of them with
# other defaults, a partial. It is called with n_classes, channels and image_size, and with train.net.arguments.
NETS: dict[str, Callable[..., nn.Module]] = {
    "Net": Net,
    "ResidualNet": ResidualNet,
    # The two solutions of the course, as their code has them; bench/course.py says what the first's weights want.
    "course_1": partial(Net, widths=(10, 20), kernel=3, output="log_softmax"),
    "course_2": partial(Net, widths=(10, 20), kernel=3, output="log_softmax", hidden=(50,), dropout=0.4),
}

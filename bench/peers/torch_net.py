"""The nets as a tutorial would write them, and what the peers on plain PyTorch share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.peers.run import KERNEL, N_CLASSES, WIDTHS


class Net(nn.Module):
    """Images (n, 1, 28, 28) to scores (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(32 * 12 * 12, N_CLASSES)
        nn.init.constant_(self.fc1.bias, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = x.view(x.size(0), -1)
        return F.relu(self.fc1(x))


def make_net(name: str) -> nn.Module:
    """Return a net for images (n, 1, 28, 28) and ten classes; the accepted names are bench.training's."""
    if name == "Net":
        return Net()
    if name == "resnet18":
        from torchvision import models  # only here: it takes a second

        net: nn.Module = models.resnet18(num_classes=N_CLASSES)
        net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        return net
    layers: list[nn.Module] = []
    for before, after in pairwise((1, *WIDTHS)):
        layers += [nn.Conv2d(before, after, KERNEL), nn.ReLU(), nn.MaxPool2d(2, 2)]
    last = nn.Linear(WIDTHS[-1], N_CLASSES)
    nn.init.constant_(last.bias, 1)
    return nn.Sequential(*layers, nn.Flatten(), last, nn.ReLU())


def autocast(precision: str) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a forward pass."""
    return nullcontext if precision == "float32" else lambda: torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> npt.NDArray[np.int64]:
    """Return the class of each image, (n,)."""
    net.eval()
    return torch.cat([net(batch).argmax(1) for batch in images.split(1000)]).numpy()

"""A residual network for small images, such as 28x28, where torchvision's would see a pixel or two in the end.

Residual blocks are of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; few of them, wide ones and
max-pooling to the end are of D. Page, "How to Train Your ResNet", 2018, which is for CIFAR-10.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from stages.base.errors import InputError


def _convolution(before: int, after: int, pool: int = 1) -> nn.Sequential:
    # The pooling comes first: batch norm and ReLU have fewer pixels then.
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        passed: Tensor = x + self.layers(x)
        return passed


class ResidualNet(nn.Module):
    """A convolution of `widths[0]` channels, which may pool, and for each further width one that pools, and a block.

    All kernels are 3x3, all poolings 2x2. The largest value of each channel goes to the linear layer. Takes float (n,
    channels, image_size, image_size), gives float (n, n_classes). Raises InputError for images that are too small.
    """

    def __init__(
        self,
        n_classes: int,
        channels: int = 1,
        image_size: int = 28,
        widths: Sequence[int] = (32, 64, 128),
        pool_first: bool = True,
    ) -> None:
        super().__init__()
        poolings = len(widths) - 1 + pool_first
        if image_size < 2**poolings:
            raise InputError(
                f"train.net: {poolings} poolings need {2**poolings} pixels a side, and the images have {image_size}:"
                " fewer widths, pool_first: false, or larger images by prepare.image_size"
            )
        self.first = _convolution(channels, widths[0], 2 if pool_first else 1)
        self.stages = nn.Sequential(
            *(nn.Sequential(_convolution(before, after, 2), _Block(after)) for before, after in pairwise(widths))
        )
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, float (n, n_classes), for images, float (n, channels, image_size, image_size)."""
        scores: Tensor = self.fc(self.stages(self.first(x)).amax((2, 3)))
        return scores

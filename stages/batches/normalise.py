"""The one place where mean and deviation are applied: the first layer of whatever takes prepared images."""

from statistics import fmean

import torch
from torch import Tensor, nn

from stages.batches.prepared import DatasetInfo

# By their names in params.yaml's train.normalise mean and deviation of red, green and blue: those of ImageNet's
# training images, as torchvision's weights and most of timm's want, and what many others want.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def pixel_statistics(normalise: str, data: DatasetInfo, channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and deviation that params.yaml's train.normalise names, on a scale of 0 to 1.

    They are of each channel, or one for all. `channels` is what the net gets: those of others are of three, and where
    there is one, it has the mean of theirs.
    """
    if normalise == "none":
        return [0.0], [1.0]
    if normalise == "data":
        return data.mean, data.std
    mean, std = STATISTICS[normalise]
    return ([*mean], [*std]) if channels == len(mean) else ([fmean(mean)], [fmean(std)])


class Normalise(nn.Module):
    """Images (n, h, w) or (n, channels, h, w) to float32 (n, channels, h, w) of mean 0 and deviation 1.

    The images are uint8 from 0 to 255, or float32 from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        # Channels last in memory, as convolutions are fastest; a gray image's one channel costs no copy.
        if images.ndim == 3:
            images = images.unsqueeze(3).movedim(3, 1)
        else:
            images = images.contiguous(memory_format=torch.channels_last)
        scaled = images.float() if images.dtype == torch.uint8 else images * 255
        return (scaled - self.mean) / self.std

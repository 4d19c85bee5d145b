"""The one place where mean and deviation are applied: the first layer of whatever takes prepared images."""

import torch
from torch import Tensor, nn


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

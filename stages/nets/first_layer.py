"""The first layer of a Net on a CPU: convolution, max-pooling and ReLU in one pass over the images.

torch does one after the other, and brings maps of many times the images' size to memory and back in between. Here what
is pooled away never leaves the registers, and in the backward pass only the winners of each pooling count.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from llvmlite.ir import IRBuilder, Value
from torch import Tensor, nn
from torch.nn import functional as F

from stages.nets import compiler
from stages.nets.compiler import BYTE, INT, Function, at, constant, fma, load, loop, spread, store

CHUNK = 8  # images whose gradients are summed before they are added to others: in one order with any number of threads
MOST_TAPS, MOST_CORNERS = 200, 9  # weights of a map, and values that are pooled; the code grows with both
NONE = 255  # the winner where ReLU leaves nothing


def pooled_convolution(x: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d) -> Tensor:
    """Return relu(pool(convolution(x))), float (n, width, h, w), for x, float (n, channels, side, side)."""
    # The largest of what ReLU leaves is what ReLU leaves of the largest, and there are fewer of these.
    return F.relu(pool(convolution(x)))


def first_layer(images: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d) -> Tensor:
    """Return `pooled_convolution` of the images, up to rounding; on CPUs in one pass.

    That is for float32, for images that need no gradient, and for layers as the Net has them.
    """
    width, channels, _, kernel = convolution.weight.shape
    sizes = Sizes(images.shape[-1], channels, kernel, pool.kernel_size, width)  # type: ignore[arg-type]
    layer = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    pooling = pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    if (
        images.shape[1:] != (channels, sizes.side, sizes.side)
        or images.requires_grad
        or layer != ((kernel, kernel), (1, 1), (0, 0), (1, 1), 1)
        or pooling != (pool.kernel_size, 0, 1, False)
        or convolution.bias is None
        or len(sizes.taps) > MOST_TAPS
        or len(sizes.corners) > MOST_CORNERS
        or not compiler.is_for(convolution, pool, x=images)
    ):
        return pooled_convolution(images, convolution, pool)
    maps: Tensor = _FirstLayer.apply(images, convolution.weight, convolution.bias, sizes)
    return maps


@dataclass(frozen=True)
class Sizes:
    """Of square images, (n, side, side, channels) in memory, and of the layer."""

    side: int
    channels: int
    kernel: int
    pool: int
    width: int

    @property
    def pooled(self) -> int:
        """The side of what the pooling leaves."""
        return (self.side - self.kernel + 1) // self.pool

    @property
    def taps(self) -> list[int]:
        """How far the values that meet the weights are from the first: for each row, column and channel."""
        kernel = range(self.kernel)
        return [self.offset(y, x) + channel for y in kernel for x in kernel for channel in range(self.channels)]

    @property
    def corners(self) -> list[int]:
        """How far the first values are of those patches of which the pooling takes the largest."""
        return [self.offset(y, x) for y in range(self.pool) for x in range(self.pool)]

    @property
    def bias(self) -> int:
        """How far the biases are from the first weight in a table, which has the weights of each tap, then these."""
        return len(self.taps) * self.width

    @property
    def work(self) -> int:
        """The fmas of an image."""
        return self.bias * (self.pooled * self.pool) ** 2

    def offset(self, y: int, x: int) -> int:
        """Return how far a pixel is from the image's first, in values."""
        return (y * self.side + x) * self.channels


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, sizes: Sizes) -> Tensor:
        images = images.permute(0, 2, 3, 1).contiguous()
        table = torch.cat([weight.permute(2, 3, 1, 0).flatten(0, 2), bias.unsqueeze(0)])
        maps = images.new_empty(len(images), sizes.pooled, sizes.pooled, sizes.width)
        winners = torch.empty_like(maps, dtype=torch.uint8)
        n = len(images)
        compiler.run(_compiled(sizes)[0], [images, table, maps, winners], n, n * sizes.work)
        ctx.save_for_backward(images, winners)
        ctx.sizes = sizes
        return maps.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, winners = ctx.saved_tensors
        sizes: Sizes = ctx.sizes
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        n = len(images)
        tables = images.new_zeros(-(-n // CHUNK), len(sizes.taps) + 1, sizes.width)
        compiler.run(_compiled(sizes)[1], [images, gradient, winners, tables], n, n * sizes.work, step=CHUNK)
        table = tables.sum(0)
        shape = sizes.kernel, sizes.kernel, sizes.channels, sizes.width
        return None, table[:-1].view(shape).permute(3, 2, 0, 1).contiguous(), table[-1], None


@lru_cache
def _compiled(sizes: Sizes) -> list[Function]:
    """Return forward(images, table, maps, winners) and backward(images, gradient, winners, tables), by images.

    `table` is float (taps + 1, width); `maps`, float, and `winners`, uint8, are (n, pooled, pooled, width). Backward
    adds to the table of each CHUNK of images, float (chunks, taps + 1, width).
    """

    def forward(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        images, table, maps, winners = pointers
        for _, pixel, place, channel, lanes in _everywhere(b, sizes, first, last):
            patch, column = at(b, images, pixel), at(b, table, channel)
            sums = [load(b, at(b, column, sizes.bias), lanes)] * len(sizes.corners)
            for number, tap in enumerate(sizes.taps):
                weights = load(b, at(b, column, number * sizes.width), lanes)
                values = [spread(b, at(b, patch, corner + tap), lanes) for corner in sizes.corners]
                sums = [fma(b, weights, value, total) for value, total in zip(values, sums, strict=True)]

            # Pooling: the first of the largest, or what is no number, as torch has it.
            best, winner = sums[0], constant(0, lanes, BYTE)
            for corner, total in enumerate(sums[1:], start=1):
                wins = b.or_(b.fcmp_ordered(">", total, best), b.fcmp_unordered("uno", total, total))
                best, winner = b.select(wins, total, best), b.select(wins, constant(corner, lanes, BYTE), winner)

            # ReLU
            is_off = b.fcmp_ordered("<=", best, constant(0.0, lanes))
            store(b, b.select(is_off, constant(0.0, lanes), best), at(b, maps, place))
            store(b, b.select(is_off, constant(NONE, lanes, BYTE), winner), at(b, winners, place, BYTE))

    def backward(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        images, gradient, winners, tables = pointers
        for image, pixel, place, channel, lanes in _everywhere(b, sizes, first, last):
            table = b.mul(b.sdiv(image, INT(CHUNK)), INT(sizes.bias + sizes.width))
            patch, column = at(b, images, pixel), at(b, tables, b.add(table, channel))
            winner, zero = load(b, at(b, winners, place, BYTE), lanes, BYTE), constant(0.0, lanes)
            is_off = b.icmp_unsigned("==", winner, constant(NONE, lanes, BYTE))
            slope = b.select(is_off, zero, load(b, at(b, gradient, place), lanes))
            slopes = [
                b.select(b.icmp_unsigned("==", winner, constant(corner, lanes, BYTE)), slope, zero)
                for corner in range(len(sizes.corners))
            ]
            for number, tap in enumerate(sizes.taps):
                entry = at(b, column, number * sizes.width)
                total = load(b, entry, lanes)
                for corner, own in zip(sizes.corners, slopes, strict=True):
                    total = fma(b, own, spread(b, at(b, patch, corner + tap), lanes), total)
                store(b, total, entry)
            bias = at(b, column, sizes.bias)
            store(b, b.fadd(load(b, bias, lanes), slope), bias)

    forward_and_backward: list[Function] = compiler.compiled((forward, 4), (backward, 4))
    return forward_and_backward


def _everywhere(
    b: IRBuilder, sizes: Sizes, first: Value, last: Value
) -> Iterator[tuple[Value, Value, Value, Value, int]]:
    """Go through the positions in the maps of some images, and there through the channels by vectors.

    Yields the image's number; where the patch's first value is among the images, and the first channel's among the
    maps; this channel, and how many they are.
    """
    side = sizes.pooled
    with loop(b, first, last) as image, loop(b, INT(0), INT(side)) as y, loop(b, INT(0), INT(side)) as x:
        pixel = b.add(b.mul(y, INT(sizes.offset(sizes.pool, 0))), b.mul(x, INT(sizes.offset(0, sizes.pool))))
        pixel = b.add(pixel, b.mul(image, INT(sizes.offset(sizes.side, 0))))
        place = b.mul(b.add(b.mul(b.add(b.mul(image, INT(side)), y), INT(side)), x), INT(sizes.width))
        for channel, lanes in compiler.blocks(b, sizes.width):
            yield image, pixel, b.add(place, channel), channel, lanes

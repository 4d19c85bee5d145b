"""The first layers of a Net on a CPU: convolution, max-pooling, ReLU and a narrow linear layer, in one pass.

torch does one after the other, and brings maps of many times the images' size to memory and back in between. Here what
is pooled away never leaves the registers, and in the backward pass only the winners of each pooling count. A linear
layer to a few classes is too narrow for what matrix products are made for: it reads an image's maps while they are
near, and their gradient is made where it is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from torch import Tensor, nn
from torch.nn import functional as F

from stages.nets import compiler
from stages.nets.compiler import BYTE, FLOAT, INT, LANES, Function, at, constant, fma, load, loop, spread, store

CHUNK = 8  # images whose gradients are summed before they are added to others: in one order with any number of threads
MOST_FMAS, MOST_CORNERS = 800, 9  # of a position, and values that are pooled there: the code grows with both
MOST_CLASSES = 16  # of the linear layer: sums of a row
NONE = 255  # the winner where ReLU leaves nothing


def pooled_convolution(x: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d) -> Tensor:
    """Return relu(pool(convolution(x))), float (n, width, h, w), for x, float (n, channels, side, side)."""
    # The largest of what ReLU leaves is what ReLU leaves of the largest, and there are fewer of these.
    return F.relu(pool(convolution(x)))


def first_layer(images: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d) -> Tensor:
    """Return `pooled_convolution` of the images, up to rounding; on CPUs in one pass.

    That is for float32, for images that need no gradient, and for layers as the Net has them.
    """
    sizes = _sizes(images, convolution, pool)
    if sizes is None:
        return pooled_convolution(images, convolution, pool)
    maps: Tensor = _Layers.apply(images, convolution.weight, convolution.bias, None, sizes)
    return maps


def first_and_only_layer(images: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d, linear: nn.Linear) -> Tensor:
    """Return linear(first_layer(...).flatten(1)), float (n, classes), up to rounding; on CPUs in the same pass."""
    sizes = _sizes(images, convolution, pool, linear)
    if sizes is None:
        return linear(first_layer(images, convolution, pool).flatten(1))  # type: ignore[no-any-return]
    # In the order of the maps, which are channels last in memory.
    matrix = linear.weight.unflatten(1, (sizes.width, sizes.pooled, sizes.pooled)).permute(0, 2, 3, 1).flatten(1)
    products: Tensor = _Layers.apply(images, convolution.weight, convolution.bias, matrix, sizes)
    return products if linear.bias is None else products + linear.bias


def work(images: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d, linear: nn.Linear) -> int:
    """Return how many fmas `first_and_only_layer` takes where it is compiled, else 0."""
    sizes = _sizes(images, convolution, pool, linear)
    return len(images) * sizes.work if sizes else 0


@dataclass(frozen=True)
class Sizes:
    """Of square images, (n, side, side, channels) in memory, and of the layers."""

    side: int
    channels: int
    kernel: int
    pool: int
    width: int
    classes: int  # 0: there is no linear layer

    @property
    def pooled(self) -> int:
        """The side of what the pooling leaves."""
        return (self.side - self.kernel + 1) // self.pool

    @property
    def values(self) -> int:
        """How many values the maps of an image have."""
        return self.pooled * self.pooled * self.width

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
        return self.bias * (self.pooled * self.pool) ** 2 + self.classes * self.values

    def offset(self, y: int, x: int) -> int:
        """Return how far a pixel is from the image's first, in values."""
        return (y * self.side + x) * self.channels


def _sizes(images: Tensor, convolution: nn.Conv2d, pool: nn.MaxPool2d, linear: nn.Linear | None = None) -> Sizes | None:
    """Return the sizes, or None where a layer is another than the Net has, such as one of a class of its own."""
    modules = [convolution, pool] if linear is None else [convolution, pool, linear]
    kinds = [type(module) for module in modules]
    if kinds != [nn.Conv2d, nn.MaxPool2d, nn.Linear][: len(kinds)] or not isinstance(pool.kernel_size, int):
        return None
    width, channels, _, kernel = convolution.weight.shape
    shape = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    sizes = Sizes(images.shape[-1], channels, kernel, pool.kernel_size, width, len(linear.weight) if linear else 0)
    fits = (
        images.shape[1:] == (channels, sizes.side, sizes.side)
        and not images.requires_grad
        and shape == ((kernel, kernel), (1, 1), (0, 0), (1, 1), 1)
        and convolution.bias is not None
        and (pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (sizes.pool, 0, 1, False)
        and sizes.pooled > 0
        and len(sizes.corners) <= MOST_CORNERS
        and len(sizes.taps) * len(sizes.corners) <= MOST_FMAS
        and compiler.is_for(*modules, x=images)
    )
    if linear is not None:
        fits = fits and len(linear.weight) <= MOST_CLASSES and sizes.values % LANES == 0
        fits = fits and linear.weight.shape[1] == sizes.values
    return sizes if fits else None


class _Layers(torch.autograd.Function):
    """The maps, float (n, width, pooled, pooled), or where there is a matrix, float (classes, values), its products."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor | None, sizes: Sizes) -> Tensor:
        images, n = images.permute(0, 2, 3, 1).contiguous(), len(images)
        table = torch.cat([weight.permute(2, 3, 1, 0).flatten(0, 2), bias.unsqueeze(0)])
        maps = images.new_empty(n, sizes.pooled, sizes.pooled, sizes.width)
        winners = torch.empty_like(maps, dtype=torch.uint8)
        tensors, result = [images, table, maps, winners], maps.permute(0, 3, 1, 2)
        if matrix is not None:
            result = images.new_empty(n, sizes.classes)
            tensors += [matrix.contiguous(), result]
        compiler.run(_compiled(sizes)[0], tensors, n, n * sizes.work)
        ctx.save_for_backward(images, winners, *([] if matrix is None else [maps, matrix]))
        ctx.sizes = sizes
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, winners, *linear = ctx.saved_tensors
        sizes: Sizes = ctx.sizes
        n, loops = len(images), _compiled(sizes)
        gradient = gradient.contiguous() if linear else gradient.permute(0, 2, 3, 1).contiguous()
        tables = images.new_zeros(-(-n // CHUNK), len(sizes.taps) + 1, sizes.width)
        tensors, of_matrix = [images, gradient, winners, tables], None
        if linear:
            maps, matrix = linear
            tensors.append(matrix.contiguous())
            of_matrix = torch.empty_like(tensors[-1])
            work = n * sizes.classes * sizes.values
            compiler.run(loops[3], [gradient, maps, of_matrix, torch.tensor([n])], sizes.values // LANES, work)
        compiler.run(loops[1], tensors, n, n * sizes.work, step=CHUNK)
        table = tables.new_empty(tables.shape[1:])
        compiler.run(loops[2], [tables, table, torch.tensor([len(tables)])], table.numel(), 0)
        shape = sizes.kernel, sizes.kernel, sizes.channels, sizes.width
        return None, table[:-1].view(shape).permute(3, 2, 0, 1).contiguous(), table[-1], of_matrix, None


@lru_cache
def _compiled(sizes: Sizes) -> list[Function]:
    """Return the loops for layers of such sizes; what is in brackets is for a linear layer.

    forward(images, table, maps, winners[, matrix, products]) goes by images. `table` is float (taps + 1, width), `maps`
    float and `winners` uint8 (n, pooled, pooled, width).
    backward(images, gradient, winners, tables[, matrix]) does, too. The gradient is that of the maps [or of the
    products]. It adds to the table of each CHUNK of images, float (chunks, taps + 1, width).
    sum_up(tables, table, chunks) adds these tables up, by the values of one.
    [of_matrix(gradient, maps, of_matrix, n) goes by values, LANES at a time.]
    """

    def forward(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        images, table, maps, winners, *linear = pointers
        with loop(b, first, last) as image:
            for pixel, place, channel, lanes in _everywhere(b, sizes, image):
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
                store(b, b.select(is_off, constant(0.0, lanes), best), at(b, maps, _in(b, sizes, image, place)))
                winner = b.select(is_off, constant(NONE, lanes, BYTE), winner)
                store(b, winner, at(b, winners, _in(b, sizes, image, place), BYTE))
            if linear:
                _products(b, sizes, at(b, maps, b.mul(image, INT(sizes.values))), image, *linear)

    def backward(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        images, gradient, winners, tables, *linear = pointers
        with loop(b, first, last) as image:
            table = b.mul(b.sdiv(image, INT(CHUNK)), INT(sizes.bias + sizes.width))
            for pixel, place, channel, lanes in _everywhere(b, sizes, image):
                patch, column = at(b, images, pixel), at(b, tables, b.add(table, channel))
                zero, index = constant(0.0, lanes), _in(b, sizes, image, place)
                if linear:
                    slope, of_image = zero, at(b, gradient, b.mul(image, INT(sizes.classes)))
                    for number in range(sizes.classes):
                        row = at(b, linear[0], b.add(place, INT(number * sizes.values)))
                        slope = fma(b, load(b, row, lanes), spread(b, at(b, of_image, number), lanes), slope)
                else:
                    slope = load(b, at(b, gradient, index), lanes)
                winner = load(b, at(b, winners, index, BYTE), lanes, BYTE)
                slope = b.select(b.icmp_unsigned("==", winner, constant(NONE, lanes, BYTE)), zero, slope)
                won = [
                    b.icmp_unsigned("==", winner, constant(corner, lanes, BYTE)) for corner in range(len(sizes.corners))
                ]
                for number, tap in enumerate(sizes.taps):
                    value = spread(b, at(b, patch, tap), lanes)
                    for corner, is_it in zip(sizes.corners[1:], won[1:], strict=True):
                        value = b.select(is_it, spread(b, at(b, patch, corner + tap), lanes), value)
                    entry = at(b, column, number * sizes.width)
                    store(b, fma(b, slope, value, load(b, entry, lanes)), entry)
                bias = at(b, column, sizes.bias)
                store(b, b.fadd(load(b, bias, lanes), slope), bias)

    def sum_up(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        tables, table, chunks = pointers
        with loop(b, first, last) as value:
            sums = [ir.Constant(FLOAT, 0.0)]
            with loop(b, INT(0), b.load(chunks, typ=INT), sums) as chunk:
                other = b.load(at(b, tables, b.add(b.mul(chunk, INT(sizes.bias + sizes.width)), value)), typ=FLOAT)
                sums[0] = b.fadd(sums[0], other)
            b.store(sums[0], at(b, table, value))

    def of_matrix(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        gradient, maps, out, n = pointers
        with loop(b, first, last) as block:
            value, sums = b.mul(block, INT(LANES)), [constant(0.0, LANES)] * sizes.classes
            with loop(b, INT(0), b.load(n, typ=INT), sums) as image:
                values = load(b, at(b, maps, _in(b, sizes, image, value)), LANES)
                slopes = at(b, gradient, b.mul(image, INT(sizes.classes)))
                for number, total in enumerate(sums):
                    sums[number] = fma(b, spread(b, at(b, slopes, number), LANES), values, total)
            for number, total in enumerate(sums):
                store(b, total, at(b, out, b.add(value, INT(number * sizes.values))))

    if not sizes.classes:
        return compiler.compiled((forward, 4), (backward, 4), (sum_up, 3))
    return compiler.compiled((forward, 6), (backward, 5), (sum_up, 3), (of_matrix, 4))


def _products(b: IRBuilder, sizes: Sizes, maps: Value, image: Value, matrix: Value, products: Value) -> None:
    """Write the products of an image's maps and each row of the matrix."""
    sums = [constant(0.0, LANES)] * sizes.classes
    with loop(b, INT(0), INT(sizes.values // LANES), sums) as block:
        place = b.mul(block, INT(LANES))
        values = load(b, at(b, maps, place), LANES)
        for number, total in enumerate(sums):
            row = at(b, matrix, b.add(place, INT(number * sizes.values)))
            sums[number] = fma(b, values, load(b, row, LANES), total)
    for number, vector in enumerate(sums):
        b.store(compiler.total(b, vector), at(b, products, b.add(b.mul(image, INT(sizes.classes)), INT(number))))


def _in(b: IRBuilder, sizes: Sizes, image: Value, place: Value) -> Value:
    """Return where a place in an image's maps is among those of all images."""
    return b.add(b.mul(image, INT(sizes.values)), place)


def _everywhere(b: IRBuilder, sizes: Sizes, image: Value) -> Iterator[tuple[Value, Value, Value, int]]:
    """Go through the positions in an image's maps, and there through the channels by vectors.

    Yields where the patch's first value is among the images; where the first channel's is in the image's maps; this
    channel, and how many they are.
    """
    side = INT(sizes.pooled)
    with loop(b, INT(0), side) as y, loop(b, INT(0), side) as x:
        pixel = b.add(b.mul(y, INT(sizes.offset(sizes.pool, 0))), b.mul(x, INT(sizes.offset(0, sizes.pool))))
        pixel = b.add(pixel, b.mul(image, INT(sizes.offset(sizes.side, 0))))
        place = b.mul(b.add(b.mul(y, side), x), INT(sizes.width))
        for channel, lanes in compiler.blocks(b, sizes.width):
            yield pixel, b.add(place, channel), channel, lanes

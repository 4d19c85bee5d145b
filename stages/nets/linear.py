"""A linear layer from maps to a few classes on a CPU: too narrow for what matrix products are made for."""

from functools import lru_cache
from typing import Any

import torch
from llvmlite.ir import IRBuilder, Value
from torch import Tensor, nn

from stages.nets import compiler
from stages.nets.compiler import INT, LANES, Function, at, constant, fma, load, loop, spread, store

MOST_CLASSES = 16  # sums that registers hold


def linear_of_maps(maps: Tensor, linear: nn.Linear) -> Tensor:
    """Return `linear(maps.flatten(1))`, float (n, out), for maps, float (n, width, h, w); on CPUs the fast way.

    Maps are channels last in memory. To flatten them would bring ten times as much into another order as the weight is.
    """
    width, size = linear.weight.shape
    if width > MOST_CLASSES or size != maps.shape[1:].numel() or size % LANES or not compiler.is_for(linear, x=maps):
        return linear(maps.flatten(1))  # type: ignore[no-any-return]
    weight = linear.weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
    x = maps.permute(0, 2, 3, 1).flatten(1)
    products: Tensor = _Product.apply(x, weight)
    return products if linear.bias is None else products + linear.bias


class _Product(torch.autograd.Function):
    """x @ weight.T for x, float (n, k), and weight, float (m, k), of a small m."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        n, (m, k) = len(x), weight.shape
        products = x.new_empty(n, m)
        compiler.run(_compiled(m, k)[0], [x, weight, products], n, n * m * k)
        return products

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        n, (m, k) = len(x), weight.shape
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        _, by_rows, by_columns = _compiled(m, k)
        compiler.run(by_rows, [gradient, weight, of_x], n, n * m * k)
        size = torch.tensor([n])
        compiler.run(by_columns, [gradient, x, of_weight, size], k // LANES, n * m * k)
        return of_x, of_weight


@lru_cache
def _compiled(m: int, k: int) -> list[Function]:
    """Return three loops, for gradients of products, float (n, m), and x and weight of a row of k floats for each.

    products(x, weight, products) and of_x(gradient, weight, of_x) go by rows of x; of_weight(gradient, x, of_weight, n)
    goes by columns, LANES at a time.
    """

    def products(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        x, weight, out = pointers
        with loop(b, first, last) as row:
            sums = [constant(0.0, LANES)] * m
            with loop(b, INT(0), INT(k // LANES), sums) as block:
                column = b.mul(block, INT(LANES))
                values = load(b, at(b, x, b.add(b.mul(row, INT(k)), column)), LANES)
                for number in range(m):
                    sums[number] = fma(
                        b, values, load(b, at(b, at(b, weight, column), number * k), LANES), sums[number]
                    )
            for number, vector in enumerate(sums):
                b.store(compiler.total(b, vector), at(b, out, b.add(b.mul(row, INT(m)), INT(number))))

    def of_x(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        gradient, weight, out = pointers
        with loop(b, first, last) as row:
            slopes = [spread(b, at(b, gradient, b.add(b.mul(row, INT(m)), INT(number))), LANES) for number in range(m)]
            with loop(b, INT(0), INT(k // LANES)) as block:
                column = b.mul(block, INT(LANES))
                total = constant(0.0, LANES)
                for number, slope in enumerate(slopes):
                    total = fma(b, slope, load(b, at(b, at(b, weight, column), number * k), LANES), total)
                store(b, total, at(b, out, b.add(b.mul(row, INT(k)), column)))

    def of_weight(b: IRBuilder, pointers: list[Value], first: Value, last: Value) -> None:
        gradient, x, out, n = pointers
        with loop(b, first, last) as block:
            column, sums = b.mul(block, INT(LANES)), [constant(0.0, LANES)] * m
            with loop(b, INT(0), b.load(n, typ=INT), sums) as row:
                values = load(b, at(b, x, b.add(b.mul(row, INT(k)), column)), LANES)
                slopes = at(b, gradient, b.mul(row, INT(m)))
                for number in range(m):
                    sums[number] = fma(b, spread(b, at(b, slopes, number), LANES), values, sums[number])
            for number, total in enumerate(sums):
                store(b, total, at(b, at(b, out, column), number * k))

    loops: list[Function] = compiler.compiled((products, 3), (of_x, 3), (of_weight, 4))
    return loops

"""Pictures of results, drawn to be looked at. Equal results give equal bytes.

All stand on one canvas each: axes of their own for a hundred tiles would take seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

matplotlib.rcdefaults()  # a user's matplotlibrc would change the bytes
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#666666"
# What fits on a page: classes in the matrix with numbers, bars, rows of examples; pixels a side of a tile.
NUMBERED, BARS, ROWS, TILE = 20, 40, 20, 128


def _save(figure: Figure, path: Path) -> None:
    # Figure without pyplot draws with Agg, needs no display, and has no state that outlives it.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _tiles(
    axes: Axes, images: Sequence[Tensor | None], columns: int, gap: float = 0.15, limit: float | None = None
) -> tuple[float, float]:
    """Draw images, each (h, w) or (3, h, w), as tiles in rows of `columns`, and return the steps from one to the next.

    They hold 0 to 255; with a `limit`, those without channels are blue down to -limit and red up to it. None leaves a
    tile empty. Tile (row, column) begins at (column * step_x, row * step_y), in pixels. One picture of all tiles is
    drawn many times faster than axes for each.
    """
    shape = next(image.shape for image in images if image is not None)
    height, width = shape[-2:]
    step_y, step_x = height + max(1, round(gap * height)), width + max(1, round(0.15 * width))
    rows = -(-len(images) // columns)
    canvas = torch.full((rows * step_y, columns * step_x, *shape[:-2]), torch.nan)  # which is drawn as nothing
    for i, image in enumerate(images):
        if image is not None:
            top, left = i // columns * step_y, i % columns * step_x
            canvas[top : top + height, left : left + width] = image if image.ndim == 2 else image.permute(1, 2, 0)
    if canvas.ndim == 3:
        # Nothing is not a colour: it is a fourth channel that says how much of one there is.
        drawn = ~canvas[:, :, :1].isnan()
        canvas = torch.cat([canvas.nan_to_num() / 255, drawn], dim=2)
    cmap, vmin, vmax = ("gray", 0.0, 255.0) if limit is None else ("RdBu_r", -limit, limit)
    axes.imshow(canvas.numpy(), cmap=cmap, extent=(0, columns * step_x, rows * step_y, 0), vmin=vmin, vmax=vmax)
    axes.axis("off")
    return step_x, step_y


def _small(images: Tensor) -> Tensor:
    """Return images, (n, h, w) or (n, 3, h, w), of TILE pixels a side at most, averaged where they had more."""
    height, width = images.shape[-2:]
    if max(height, width) <= TILE:
        return images
    ratio = TILE / max(height, width)
    return F.adaptive_avg_pool2d(images.float(), (max(1, round(ratio * height)), max(1, round(ratio * width))))


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def learning_curves(path: Path, history: pd.DataFrame, chosen: int) -> None:
    """Draw loss and accuracy over the epochs, training beside validation, with the chosen epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    marker = "o" if len(history) == 1 else None  # a line of one point is not to be seen
    for axes, quantity in zip(figure.subplots(1, 2), ["loss", "accuracy"], strict=True):
        axes.plot(history["epoch"], history[f"train/{quantity}"], color=GREY, marker=marker, label="train")
        axes.plot(history["epoch"], history[f"valid/{quantity}"], color=BLUE, marker=marker, label="validation")
        axes.axvline(chosen, color=ORANGE, linewidth=1, linestyle="--", label=f"chosen: epoch {chosen}")
        axes.set(xlabel="epoch", title=quantity)
        axes.grid(alpha=0.3)
        _bare(axes)
        axes.legend(frameon=False)
    _save(figure, path)


def confusion(path: Path, table: Tensor, classes: list[str]) -> None:
    """Draw a confusion matrix, int64 (n_classes, n_classes): rows are labels, coloured by the share of each row."""
    n = len(classes)
    side = max(5.0, 0.62 * n + 1.5) if n <= NUMBERED else 10.0
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = table / table.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in table.nonzero().tolist() if n <= NUMBERED else []:
        colour = "white" if shares[row, column] > 0.5 else ORANGE if row != column else "black"
        axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", fontsize=9, color=colour)
    named, size = range(0, n, -(-n // 50)), 10 if n <= NUMBERED else 7
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if n <= NUMBERED else {"rotation": 90}
    axes.set_xticks(named, [_short(classes[i]) for i in named], **turned)
    axes.set_yticks(named, [_short(classes[i]) for i in named])
    axes.tick_params(labelsize=size)
    axes.set(xlabel="predicted", ylabel="label", title=f"{int(table.diag().sum()):,} of {int(table.sum()):,} correct")
    _save(figure, path)


def classes(path: Path, table: pd.DataFrame) -> None:
    """Draw the accuracy of each class as bars, the worst on top; columns: class, correct, total, recall."""
    ordered = table.sort_values(["recall", "class"], ascending=[False, True])[-BARS:]
    figure = Figure(figsize=(7, max(2.5, 0.36 * len(ordered) + 1)), layout="constrained")
    axes = figure.subplots()
    places = range(len(ordered))  # not the names, of which two may be equal once they are short
    bars = axes.barh(places, ordered["recall"], color=BLUE)
    axes.set_yticks(places, [_short(name) for name in ordered["class"]])
    axes.bar_label(
        bars, [f" {c} of {t}" for c, t in zip(ordered["correct"], ordered["total"], strict=True)], fontsize=9
    )
    axes.set(xlim=(0, 1.15), xlabel="share of the class's test images that are predicted correctly")
    if len(ordered) < len(table):
        axes.set_title(f"The worst {len(ordered)} of {len(table)} classes")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    _bare(axes)
    _save(figure, path)


def most_confident(labels: Tensor, predicted: Tensor, probabilities: Tensor) -> Tensor:
    """Return the places of the 24 most confident mistakes, int64; labels and predicted are int64 (n,)."""
    confidence = probabilities.max(1).values
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:24]


def mistakes(
    path: Path,
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    probabilities: Tensor,
    classes: list[str],
    count: int,
) -> None:
    """Draw mistakes, which are the first of `count`: images uint8 (n, h, w) or (n, 3, h, w), labels int64 (n,)."""
    figure = Figure(figsize=(10, 2.3 * max(1, -(-len(images) // 6)) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"The most confident of {count} mistakes\n\n" if count else "No mistakes")
    axes.axis("off")
    if count:
        tiles = _small(images)
        step_x, step_y = _tiles(axes, list(tiles), columns=6, gap=0.4)
        for i in range(len(tiles)):
            x, y = i % 6 * step_x + tiles.shape[-1] / 2, i // 6 * step_y
            text = f"{_short(classes[predicted[i]])} {probabilities[i].max():.0%}\nis {_short(classes[labels[i]])}"
            axes.text(x, y - 0.02 * step_y, text, ha="center", va="bottom", fontsize=10)
    _save(figure, path)


def first_of_each(labels: Tensor, n_classes: int) -> Tensor:
    """Return the places of the first twelve images of each of the first classes, int64; labels are int64 (n,)."""
    return torch.cat([(labels == label).nonzero().flatten()[:12] for label in range(min(n_classes, ROWS))])


def examples(path: Path, images: Tensor, labels: Tensor, classes: list[str]) -> None:
    """Draw images as `first_of_each` chooses them, one class a row: uint8 (n, h, w) or (n, 3, h, w)."""
    shown = classes[:ROWS]
    figure = Figure(figsize=(10, 0.75 * len(shown) + 0.5), layout="constrained")
    axes = figure.subplots()
    some = f", of the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else ""
    axes.set_title(f"Training images{some}")
    small = _small(images)
    tiles: list[Tensor | None] = []
    for label in range(len(shown)):
        row = list(small[labels == label])
        tiles += row + [None] * (12 - len(row))
    _, step_y = _tiles(axes, tiles, columns=12)
    for label, name in enumerate(shown):
        axes.text(-0.3, label * step_y + small.shape[-2] / 2, _short(name), ha="right", va="center", fontsize=11)
    _save(figure, path)


def filters(path: Path, name: str, weight: Tensor) -> None:
    """Draw a convolution's kernels, float (width, channels, k, k), blue below zero and red above.

    Of one that takes several channels, a filter's kernels for the first eight of them stand side by side. Of one that
    takes the three colours, a filter is drawn as an image, grey where it is zero.
    """
    width, channels = weight.shape[:2]
    limit = float(weight.abs().max()) or 1.0
    if channels == 3:
        shown, columns = (weight[:32] / limit + 1) * 127.5, 8
    elif channels == 1:
        shown, columns = weight[:32, 0], 8
    else:
        shown, columns = weight[:16, :8].flatten(0, 1), 8 // min(8, channels) * min(8, channels)
    figure = Figure(figsize=(columns, -(-len(shown) // columns) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{name}: {width} filters of {channels} channel{'s' * (channels > 1)}")
    _tiles(axes, list(shown), columns, limit=limit)
    _save(figure, path)


def activations(path: Path, name: str, image: Tensor, before: Tensor, after: Tensor, pooled: Tensor) -> None:
    """Draw what a convolution makes of an image, uint8 (h, w) or (3, h, w): maps, float (width, h, w) each.

    The first 16 maps are drawn, blue below zero and red above, on one scale.
    """
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    grid = figure.subplots(4, 1, height_ratios=[1.3, 2, 2, 2])
    grid[0].set_title(f"{name} sees this test image")
    _tiles(grid[0], list(_small(image[None])), columns=1)
    limit = float(before[:16].abs().max())
    titles = ["its maps before ReLU", "after ReLU", "after pooling"]
    for axes, title, maps in zip(grid[1:], titles, [before, after, pooled], strict=True):
        axes.set_title(title)
        _tiles(axes, list(_small(maps[:16])), columns=8, limit=limit)
    _save(figure, path)

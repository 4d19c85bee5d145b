"""Pictures of results, drawn to be looked at. Equal results give equal bytes.

All stand on one canvas each: axes of their own for a hundred tiles would take seconds.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

matplotlib.rcdefaults()  # a user's matplotlibrc would change the bytes

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#666666"


def _save(figure: Figure, path: Path) -> None:
    # Figure without pyplot draws with Agg, needs no display, and has no state that outlives it.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _tiles(
    axes: Axes, images: Sequence[Tensor], columns: int, gap: float = 0.15, limit: float | None = None
) -> tuple[float, float]:
    """Draw images, each (h, w), as tiles in rows of `columns`, and return the steps from one tile to the next.

    They are grey, 0 to 255; with a `limit` blue down to -limit and red up to it. Tile (row, column) begins at
    (column * step_x, row * step_y), in pixels. One picture of all tiles is drawn many times faster than axes for each.
    """
    height, width = images[0].shape
    step_y, step_x = height + max(1, round(gap * height)), width + max(1, round(0.15 * width))
    rows = -(-len(images) // columns)
    canvas = torch.full((rows * step_y, columns * step_x), torch.nan)  # which is drawn as nothing
    for i, image in enumerate(images):
        top, left = i // columns * step_y, i % columns * step_x
        canvas[top : top + height, left : left + width] = image
    cmap, vmin, vmax = ("gray", 0.0, 255.0) if limit is None else ("RdBu_r", -limit, limit)
    axes.imshow(canvas.numpy(), cmap=cmap, extent=(0, columns * step_x, rows * step_y, 0), vmin=vmin, vmax=vmax)
    axes.axis("off")
    return step_x, step_y


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def learning_curves(path: Path, history: pd.DataFrame, chosen: int) -> None:
    """Draw loss and accuracy over the epochs, training beside validation, with the chosen epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ["loss", "accuracy"], strict=True):
        axes.plot(history["epoch"], history[f"train/{quantity}"], color=GREY, label="train")
        axes.plot(history["epoch"], history[f"valid/{quantity}"], color=BLUE, label="validation")
        axes.axvline(chosen, color=ORANGE, linewidth=1, linestyle="--", label=f"chosen: epoch {chosen}")
        axes.set(xlabel="epoch", title=quantity)
        axes.grid(alpha=0.3)
        _bare(axes)
        axes.legend(frameon=False)
    _save(figure, path)


def confusion(path: Path, table: Tensor, classes: list[str]) -> None:
    """Draw a confusion matrix, int64 (n_classes, n_classes): rows are labels, coloured by the share of each row."""
    n = len(classes)
    side = max(5.0, 0.62 * n + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = table / table.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(n):
        for column in range(n):
            if count := int(table[row, column]):
                colour = "white" if shares[row, column] > 0.5 else ORANGE if row != column else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(n), classes, rotation=45, ha="right")
    axes.set_yticks(range(n), classes)
    axes.set(xlabel="predicted", ylabel="label", title=f"{int(table.diag().sum()):,} of {int(table.sum()):,} correct")
    _save(figure, path)


def classes(path: Path, table: pd.DataFrame) -> None:
    """Draw the accuracy of each class as bars, the worst on top; columns: class, correct, total, recall."""
    ordered = table.sort_values(["recall", "class"], ascending=[False, True])
    figure = Figure(figsize=(7, max(2.5, 0.36 * len(table) + 1)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(ordered["class"], ordered["recall"], color=BLUE)
    axes.bar_label(
        bars, [f" {c} of {t}" for c, t in zip(ordered["correct"], ordered["total"], strict=True)], fontsize=9
    )
    axes.set(xlim=(0, 1.15), xlabel="share of the class's test images that are predicted correctly")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    _bare(axes)
    _save(figure, path)


def mistakes(
    path: Path, images: Tensor, labels: Tensor, predicted: Tensor, probabilities: Tensor, classes: list[str]
) -> None:
    """Draw the 24 most confident mistakes: images uint8 (n, h, w), labels and predicted int64 (n,)."""
    confidence = probabilities.max(1).values
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:24].tolist()
    figure = Figure(figsize=(10, 2.3 * max(1, -(-len(worst) // 6)) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"The most confident of {len(wrong)} mistakes\n\n" if worst else "No mistakes")
    axes.axis("off")
    if worst:
        step_x, step_y = _tiles(axes, [images[i] for i in worst], columns=6, gap=0.4)
        for place, i in enumerate(worst):
            x, y = place % 6 * step_x + images.shape[2] / 2, place // 6 * step_y
            text = f"{classes[predicted[i]]} {confidence[i]:.0%}\nis {classes[labels[i]]}"
            axes.text(x, y - 0.02 * step_y, text, ha="center", va="bottom", fontsize=10)
    _save(figure, path)


def examples(path: Path, images: Tensor, labels: Tensor, classes: list[str]) -> None:
    """Draw the first twelve images of each class, one class a row: images uint8 (n, h, w), labels int64 (n,)."""
    figure = Figure(figsize=(10, 0.75 * len(classes) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Training images")
    blank = torch.full(images.shape[1:], torch.nan)
    tiles: list[Tensor] = []
    for label in range(len(classes)):
        row = list(images[labels == label][:12])
        tiles += row + [blank] * (12 - len(row))
    _, step_y = _tiles(axes, tiles, columns=12)
    for label, name in enumerate(classes):
        axes.text(-0.3, label * step_y + images.shape[1] / 2, name, ha="right", va="center", fontsize=11)
    _save(figure, path)


def filters(path: Path, name: str, weight: Tensor) -> None:
    """Draw a convolution's kernels, float (width, channels, k, k), blue below zero and red above.

    Of one that takes several channels, a row holds a filter's kernels for the first eight of them.
    """
    width, channels = weight.shape[:2]
    shown = weight[:32, 0] if channels == 1 else weight[:16, :8].flatten(0, 1)
    columns = 8 if channels == 1 else min(8, channels)
    figure = Figure(figsize=(8, 8 / columns * -(-len(shown) // columns) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{name}: {width} filters of {channels} channel{'s' * (channels > 1)}")
    limit = float(weight.abs().max())
    _tiles(axes, list(shown), columns, limit=limit)
    _save(figure, path)


def activations(path: Path, name: str, image: Tensor, before: Tensor, after: Tensor, pooled: Tensor) -> None:
    """Draw what a convolution makes of a test image: `image` is uint8 (h, w), the others maps, float (width, h, w).

    The first 16 maps are drawn, blue below zero and red above, on one scale.
    """
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    grid = figure.subplots(4, 1, height_ratios=[1.3, 2, 2, 2])
    grid[0].set_title(f"{name} sees this test image")
    _tiles(grid[0], [image], columns=1)
    limit = float(before[:16].abs().max())
    titles = ["its maps before ReLU", "after ReLU", "after pooling"]
    for axes, title, maps in zip(grid[1:], titles, [before, after, pooled], strict=True):
        axes.set_title(title)
        _tiles(axes, list(maps[:16]), columns=8, limit=limit)
    _save(figure, path)

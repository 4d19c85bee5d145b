"""Pictures of results, drawn to be looked at. Equal results give equal bytes.

matplotlib takes half a second to import: a stage imports this module where it draws.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#666666"


def _save(figure: Figure, path: Path) -> None:
    # Figure without pyplot draws with Agg, needs no display, and has no state that outlives it.
    figure.savefig(path, dpi=100, metadata={"Software": None})


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
    rows = max(1, -(-len(worst) // 6))
    figure = Figure(figsize=(10, 2.1 * rows + 0.5), layout="constrained")
    figure.suptitle(f"The most confident of {len(wrong)} mistakes" if worst else "No mistakes")
    grid = figure.subplots(rows, 6, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, worst, strict=False):
        axes.imshow(images[i].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{classes[predicted[i]]} {confidence[i]:.0%}\nis {classes[labels[i]]}", fontsize=9)
    _save(figure, path)

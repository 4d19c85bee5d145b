"""Charts of figures: of the training's epochs, and of what is measured on the test images."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from stages.report.canvas import BLUE, GREY, ORANGE, bare, over_epochs, short
from stages.training.calibration import Bins
from stages.training.curves import Curve

# What fits on a page: classes in the matrix with numbers, bars, and lines of curves.
NUMBERED, BARS, LINES = 20, 40, 10
RECALL, FALLOUT, PRECISION = "recall", "fallout", "precision"
# What curves are called, the column of their areas, and what of a Curve stands on which axis.
CURVES = [("ROC", "auroc", FALLOUT, RECALL), ("Precision, recall", "average_precision", RECALL, PRECISION)]
AXES = {
    RECALL: "recall: of its images those called so",
    FALLOUT: "of others' images those called so",
    PRECISION: "precision: of those called so its images",
}


def learning_curves(history: pd.DataFrame, chosen: int) -> Figure:
    """Draw loss and accuracy over the epochs, training beside validation, with the chosen epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    marker = "o" if len(history) == 1 else None  # a line of one point is not to be seen
    for axes, quantity in zip(figure.subplots(1, 2), ["loss", "accuracy"], strict=True):
        axes.plot(history["epoch"], history[f"train/{quantity}"], color=GREY, marker=marker, label="train")
        axes.plot(history["epoch"], history[f"valid/{quantity}"], color=BLUE, marker=marker, label="validation")
        axes.axvline(chosen, color=ORANGE, linewidth=1, linestyle="--", label=f"chosen: epoch {chosen}")
        over_epochs(axes, quantity)
        axes.legend(frameon=False)
    return figure


def confusion(table: Tensor, classes: list[str]) -> Figure:
    """Draw a confusion matrix, int64 (n_classes, n_classes): rows are labels, coloured by the share of each row."""
    n = len(classes)
    side = min(10.0, max(6.0, 0.62 * n + 2.5)) if n <= NUMBERED else 10.0
    figure = Figure(figsize=(side, 0.8 * side), layout="constrained")
    axes = figure.subplots()
    shares, diagonal = table / table.sum(1, keepdim=True).clamp(min=1), torch.eye(n, dtype=torch.bool)
    for colours, cells, what in [("Oranges", ~diagonal, "wrong"), ("Blues", diagonal, "right")]:
        image = axes.imshow(shares.where(cells & (table > 0), torch.nan).numpy(), cmap=colours, vmin=0, vmax=1)
        figure.colorbar(image, shrink=0.6, pad=0.01, label=f"{what}, share of the label's images")
    for row, column in table.nonzero().tolist() if n <= NUMBERED else []:
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", fontsize=9, color=colour)
        axes.text(column, row + 0.3, f"{shares[row, column]:.1%}", ha="center", va="center", fontsize=7, color=colour)
    named, size = range(0, n, -(-n // 50)), 10 if n <= NUMBERED else 7
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if n <= NUMBERED else {"rotation": 90}
    axes.set_xticks(named, [short(classes[i]) for i in named], **turned)
    axes.set_yticks(named, [short(classes[i]) for i in named])
    axes.tick_params(labelsize=size)
    title = f"{int(table.diag().sum()):,} of {int(table.sum()):,} test images correct"
    axes.set(xlabel="predicted", ylabel="label", title=title)
    return figure


def classes(table: pd.DataFrame) -> Figure:
    """Draw the accuracy of each class as bars, the worst on top; columns: class, correct, total, recall."""
    ordered = table.sort_values(["recall", "class"], ascending=[False, True])[-BARS:]
    figure = Figure(figsize=(7, max(2.5, 0.36 * len(ordered) + 1)), layout="constrained")
    axes = figure.subplots()
    places = range(len(ordered))  # not the names, of which two may be equal once they are short
    bars = axes.barh(places, ordered["recall"], color=BLUE)
    axes.set_yticks(places, [short(name) for name in ordered["class"]])
    axes.bar_label(
        bars, [f" {c} of {t}" for c, t in zip(ordered["correct"], ordered["total"], strict=True)], fontsize=9
    )
    which = f"the worst {len(ordered)} of {len(table)} classes" if len(ordered) < len(table) else "each class"
    shares = "share of its test images that are predicted correctly"
    axes.set(xlim=(0, 1.15), xlabel=shares, title=f"Accuracy of {which}")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    bare(axes)
    return figure


def curves(of_class: Callable[[int], Curve | None], table: pd.DataFrame) -> Figure:
    """Draw the ROC and the precision-recall curve of each class, or of those with the smallest areas.

    `of_class` gives a class's curve by its number; the table has a row a class: class, auroc, average_precision.
    """
    figure = Figure(figsize=(11, 5.2))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.1, top=0.93, wspace=0.15)  # a layout to be found takes time
    for axes, (what, area, across, up) in zip(figure.subplots(1, 2), CURVES, strict=True):
        known = table[area].dropna()
        worst = known.sort_values(kind="stable")[:LINES]
        for number, label in enumerate(worst.index.tolist()):
            found = of_class(label)
            x, y = getattr(found, across).numpy(), getattr(found, up).numpy()
            drawstyle = "steps-pre" if up == PRECISION else "default"
            name = f"{worst[label]:.3f} {short(table['class'][label], 18)}"
            axes.plot(x, y, color=f"C{number}", linewidth=1.3, drawstyle=drawstyle, label=name)
        which = f"the lowest {len(worst)} of {len(known)} classes" if len(worst) < len(known) else "each class"
        axes.set(xlabel=AXES[across], ylabel=AXES[up], title=f"{what} of {which}")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(frameon=False, fontsize=8, title="area", title_fontsize=8, loc="lower center")
        axes.grid(alpha=0.3)
        bare(axes)
    return figure


def reliability(found: Bins) -> Figure:
    """Draw how often the net is right, over how sure it is."""
    figure = Figure(figsize=(6, 5.5))
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.09, top=0.94, hspace=0.08)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    n, there = len(found.count), found.count > 0
    count, edges, width = found.count[there], torch.arange(n)[there] / n, 1 / n
    right, sure = found.correct[there] / count, found.confidence[there] / count
    axes.bar(edges, right, width, align="edge", color=BLUE, edgecolor="white", label="right")
    axes.plot(sure, right, ".", color=ORANGE, label="at the mean confidence")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as sure as right")
    axes.set(ylim=(0, 1.02), ylabel="share that is right", title=f"Expected calibration error {found.error:.4f}")
    axes.legend(framealpha=0.9, loc="upper left")
    below.bar(edges, count, width, align="edge", color=GREY, edgecolor="white")
    below.set(xlim=(0, 1), xlabel="confidence: probability of the predicted class", ylabel="test images")
    for each in (axes, below):
        bare(each)
    return figure

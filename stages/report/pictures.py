"""Pictures of results, drawn to be looked at. Equal results give equal bytes. PICTURES lists those of a result."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from stages.base.errors import InputError
from stages.base.registry import check_table
from stages.report import charts
from stages.report.canvas import GREY, draw_tiles, short, short_path, small
from stages.training.calibration import Bins
from stages.training.curves import Curve

ROWS = 20  # of examples that fit on a page


@dataclass(frozen=True)
class Result:
    """What pictures are drawn of: the test images and what the net says of them, and the training images. On the CPU.

    Images are read when they are asked for, at places, int64 (m,), in a split: uint8 (m, h, w) or (m, 3, h, w).
    """

    classes: list[str]
    labels: Tensor  # int64 (n,)
    predicted: Tensor  # int64 (n,)
    probabilities: Tensor  # float (n, n_classes)
    is_probable: bool  # whether they are said to be probabilities
    confusion: Tensor  # int64 (n_classes, n_classes)
    per_class: pd.DataFrame  # what classes.csv holds
    curve: Callable[[int], Curve | None]  # of a class
    calibration: Bins
    files: list[str]  # what the n test images are called
    images: Callable[[Tensor], Tensor]
    training_labels: Tensor  # int64 (N,)
    training_images: Callable[[Tensor], Tensor]

    @cached_property
    def wrong(self) -> Tensor:
        """The places of the 24 most confident mistakes, int64."""
        return most_confident(self.labels, self.predicted, self.probabilities)


def most_confident(labels: Tensor, predicted: Tensor, probabilities: Tensor) -> Tensor:
    """Return the places of the 24 most confident mistakes, int64; labels and predicted are int64 (n,)."""
    confidence = probabilities.max(1).values
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:24]


def mistakes(
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    shares: Tensor | None,
    classes: list[str],
    files: list[str],
    count: int,
) -> Figure:
    """Draw mistakes, which are the first of `count`: images uint8 (n, h, w) or (n, 3, h, w), labels int64 (n,).

    `shares`, float (n,), are how probable the classes that were predicted are said to be, None if nothing says so.
    """
    figure = Figure(figsize=(10, 2.25 * max(1, -(-len(images) // 6)) + 0.7), layout="constrained")
    axes = figure.subplots()
    few = f"The {len(images)} most confident of {count:,} mistakes" if len(images) < count else f"All {count} mistakes"
    figure.suptitle(f"{few}, the most confident first" if count else "No mistakes")
    axes.axis("off")
    if count:
        tiles = small(images)
        step_x, step_y = draw_tiles(axes, list(tiles), columns=6, gap=0.55)
        for i, file in enumerate(files):
            x, y = i % 6 * step_x + tiles.shape[-1] / 2, i // 6 * step_y
            said, true = short(classes[predicted[i]], 16), short(classes[labels[i]], 18)
            text = f"{said}{'' if shares is None else f' {shares[i]:.0%}'}\nis {true}"
            axes.text(x, y - 0.02 * step_y, text, ha="center", va="bottom", fontsize=9)
            under = y + tiles.shape[-2] + 0.02 * step_y
            axes.text(x, under, short_path(file, 22), ha="center", va="top", fontsize=8, color=GREY)
    return figure


def first_of_each(labels: Tensor, n_classes: int) -> Tensor:
    """Return the places of the first twelve images of each of the first classes, int64; labels are int64 (n,)."""
    return torch.cat([(labels == label).nonzero().flatten()[:12] for label in range(min(n_classes, ROWS))])


def examples(images: Tensor, labels: Tensor, classes: list[str], counts: Tensor) -> Figure:
    """Draw images as `first_of_each` chooses them, one class a row: uint8 (n, h, w) or (n, 3, h, w).

    `counts`, int64 (n_classes,), are how many there are of each class.
    """
    shown = classes[:ROWS]
    figure = Figure(figsize=(10, 0.75 * len(shown) + 0.5), layout="constrained")
    axes = figure.subplots()
    some = f"the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else "each class"
    axes.set_title(f"The first training images of {some}")
    averaged = small(images)
    tiles: list[Tensor | None] = []
    for label in range(len(shown)):
        row = list(averaged[labels == label])
        tiles += row + [None] * (12 - len(row))
    step_x, step_y = draw_tiles(axes, tiles, columns=12)
    for label, name in enumerate(shown):
        axes.text(
            -0.1 * step_x,
            label * step_y + averaged.shape[-2] / 2,
            f"{short(name)}\n{counts[label]:,} image{'s' * (counts[label] != 1)}",
            ha="right",
            va="center",
            fontsize=9,
        )
    return figure


def _mistakes(result: Result) -> Figure:
    wrong = result.wrong
    shares = result.probabilities[wrong].max(1).values if result.is_probable else None
    picked = result.images(wrong), result.labels[wrong], result.predicted[wrong], shares
    count = int((result.predicted != result.labels).sum())
    return mistakes(*picked, result.classes, [result.files[place] for place in wrong], count)


def _examples(result: Result) -> Figure:
    first = first_of_each(result.training_labels, len(result.classes))
    counts = result.training_labels.bincount(minlength=len(result.classes))
    return examples(result.training_images(first), result.training_labels[first], result.classes, counts)


# By the name of the file that evaluate writes to plots/pictures; MLflow has it among the artifacts of the run.
PICTURES: dict[str, Callable[[Result], Figure]] = {
    "confusion": lambda result: charts.confusion(result.confusion, result.classes),
    "classes": lambda result: charts.classes(result.per_class),
    "curves": lambda result: charts.curves(result.curve, result.per_class),
    "reliability": lambda result: charts.reliability(result.calibration),
    "mistakes": _mistakes,
    "examples": _examples,
}
OF_PROBABILITIES = ("reliability",)


def pictures(result: Result, taken: Collection[str] = ()) -> Iterator[tuple[str, Figure]]:
    """Yield each of PICTURES with its name. Raises InputError for what is no picture, or whose name is `taken`."""
    place = "PICTURES in stages/report/pictures.py"
    check_table(place, PICTURES, by_name=False, taken=taken)
    for name, draw in PICTURES.items():
        if name in OF_PROBABILITIES and not result.is_probable:
            continue
        figure = draw(result)
        if not isinstance(figure, Figure):
            raise InputError(f"{place}: {name!r} gives {figure!r}, should be a Figure of matplotlib")
        yield name, figure

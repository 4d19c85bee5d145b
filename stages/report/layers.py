"""Pictures of a net's convolutions: their filters, and what they make of an image. Equal nets give equal bytes."""

from matplotlib.figure import Figure
from torch import Tensor

from stages.report.canvas import draw_scale, draw_tiles, short_path, small

MAPS = 16  # of a convolution's activations


def filters(name: str, weight: Tensor) -> Figure:
    """Draw a convolution's kernels, float (width, channels, k, k), blue below zero and red above.

    Of one that takes several channels, a filter's kernels for the first eight of them stand side by side. Of one that
    takes the three colours, a filter is drawn as an image, grey where it is zero.
    """
    width, channels = weight.shape[:2]
    limit = float(weight.abs().max()) or 1.0
    filters, beside = min(width, 32 if channels in (1, 3) else 16), min(channels, 8)
    if channels == 3:
        shown, columns = (weight[:filters] / limit + 1) * 127.5, 8
    elif channels == 1:
        shown, columns = weight[:filters, 0], 8
    else:
        shown, columns = weight[:filters, :beside].flatten(0, 1), 8 // beside * beside
    figure = Figure(figsize=(columns + 1, -(-len(shown) // columns) + 0.5), layout="constrained")
    axes = figure.subplots()
    title = f"{name}: {_some(filters, width)} filters"
    if channels == 3:
        title += f", their 3 channels as colours: -{limit:.2g} is none, {limit:.2g} is full"
    else:
        title += f", each for {_some(beside, channels)} channels side by side" if channels > 1 else ""
        draw_scale(figure, [axes], limit)
    axes.set_title(title)
    draw_tiles(axes, list(shown), columns, limit=limit)
    return figure


def _some(shown: int, all_of_them: int) -> str:
    return str(shown) if shown == all_of_them else f"{shown} of {all_of_them}"


def activations(name: str, file: str, image: Tensor, before: Tensor, after: Tensor, pooled: Tensor) -> Figure:
    """Draw what a convolution makes of the image of a `file`, uint8 (h, w) or (3, h, w): maps, float (width, h, w).

    The first 16 maps are drawn, blue below zero and red above, on one scale.
    """
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    grid = figure.subplots(4, 1, height_ratios=[1.3, 2, 2, 2])
    grid[0].set_title(f"{name} sees this test image: {short_path(file, 48)}")
    draw_tiles(grid[0], list(small(image[None])), columns=1)
    limit = float(before[:MAPS].abs().max()) or 1.0
    titles = [f"{_some(len(before[:MAPS]), len(before))} maps before ReLU", "after ReLU", "after pooling"]
    for axes, title, maps in zip(grid[1:], titles, [before, after, pooled], strict=True):
        axes.set_title(title)
        draw_tiles(axes, list(small(maps[:MAPS])), columns=8, limit=limit)
    draw_scale(figure, grid[1:], limit)
    return figure

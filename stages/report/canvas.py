"""What all pictures share: how they are saved, their tiles, and how names are shortened to fit.

Axes of their own for a hundred tiles would take seconds: all tiles of a picture stand in one image.
"""

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from stages.base.text import one_line

matplotlib.rcdefaults()  # a user's matplotlibrc would change the bytes
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#666666"
TILE = 128  # pixels a side of a tile


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG. Characters that no font has are said once, by `fonts.use_for`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # Figure without pyplot draws with Agg, needs no display, and has no state that outlives it.
        figure.savefig(path, dpi=100, metadata={"Software": None})


def draw_tiles(
    axes: Axes, images: Sequence[Tensor | None], columns: int, gap: float = 0.15, limit: float | None = None
) -> tuple[float, float]:
    """Draw images, each (h, w) or (3, h, w), as tiles in rows of `columns`, and return the steps from one to the next.

    They hold 0 to 255; with a `limit`, those without channels are blue down to -limit and red up to it. None leaves a
    tile empty. Tile (row, column) begins at (column * step_x, row * step_y), in pixels.
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


def small(images: Tensor) -> Tensor:
    """Return images, (n, h, w) or (n, 3, h, w), of TILE pixels a side at most, averaged where they had more."""
    height, width = images.shape[-2:]
    if max(height, width) <= TILE:
        return images
    ratio = TILE / max(height, width)
    return F.adaptive_avg_pool2d(images.float(), (max(1, round(ratio * height)), max(1, round(ratio * width))))


def draw_scale(figure: Figure, axes: Sequence[Axes], limit: float) -> None:
    """Draw beside `axes` what the colours of tiles with this `limit` mean."""
    colours = ScalarMappable(matplotlib.colors.Normalize(-limit, limit), "RdBu_r")
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.8, aspect=30, ticks=[-limit, 0, limit])
    bar.ax.set_yticklabels([f"{-limit:.2g}", "0", f"{limit:.2g}"])


def short(name: str, most: int = 24) -> str:
    """Return the beginning of a name that would be wider than `most` letters; those of Chinese count as two."""
    return _cut(one_line(name), most)


def short_path(path: str, most: int = 24) -> str:
    """Return the end of a path, which tells files apart, if it would be wider than `most` letters."""
    return _cut(one_line(path)[::-1], most)[::-1]


def _cut(name: str, most: int) -> str:
    ends, width = [], 0
    for letter in name:
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        ends.append(width)
    return name if width <= most else f"{name[: sum(end < most for end in ends)]}…"


def bare(axes: Axes) -> None:
    """Leave out the frame's lines above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def over_epochs(axes: Axes, quantity: str) -> None:
    """Make axes ready for curves of a quantity."""
    axes.set(xlabel="epoch", title=quantity)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    bare(axes)

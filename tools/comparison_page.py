"""A comparison as a page of HTML that needs no other file: its pictures are in it, and its texts are escaped."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image

from stages.base.errors import InputError
from stages.batches.prepared import Prepared, Split
from stages.report.canvas import TILE, over_epochs, short
from tools.comparison import Comparison
from tools.html import STYLE, embedded, text
from tools.runs import EvaluatedRun, Runs

PREPARED = Path("data/prepared")
CONFUSION = "plots/pictures/confusion.png"
MOST = 24  # images that one of two runs alone gets right


def as_html(comparison: Comparison, store: Runs) -> str:
    """Return the page. Images are those of the workspace's prepared set, if it is what the runs were tested on."""
    runs = comparison.runs
    differ = " The losses are of different functions." if len({run.loss for run in runs}) > 1 else ""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{text(', '.join(run.name for run in runs))}</title><style>{STYLE}</style>",
        "<h1>Runs compared</h1>",
        *(f"<p>{text(verdict)}</p>" for verdict in comparison.verdicts),
        _table(comparison),
        *(f"<p>{text(remark)}</p>" for remark in [comparison.same, *comparison.remarks] if remark),
        f'<p><small>The names lead to MLflow, which <a href="{text(store.comparing(runs))}">compares the runs</a>, too;'
        " to a store on this machine while make ui runs.</small></p>",
        "<h2>Curves</h2>",
        f'<img alt="" src="{_curves(runs, store)}">',
        f"<p><small>Validation; dotted: training. The dot is the epoch whose weights were kept.{differ}</small></p>",
        "<h2>Confusion matrices</h2>",
        *(_confusion(run, store) for run in runs),
        *(part for other in runs[1:] for part in _differing(runs[0], other)),
    ]
    return "\n".join(parts) + "\n"


def _table(comparison: Comparison) -> str:
    """Return one table for all, so that each run has its column."""
    runs = comparison.runs
    links = "".join(f'<th><a href="{text(run.link)}">{text(run.name)}</a></th>' for run in runs)
    rows = [f"<tr><th>run</th>{links}</tr>", _row(["id", *(run.id[:8] for run in runs)])]
    for title, table in comparison.tables.items():
        if table:
            rows += [f"<tr class=title><th>{text(title)}</th>{links}</tr>", *map(_row, table)]
    return f"<div><table>{''.join(rows)}</table></div>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"


def _curves(runs: Sequence[EvaluatedRun], store: Runs) -> str:
    """Return a picture of loss and accuracy of all runs. The browser writes what stands in it, in its own fonts."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ["loss", "accuracy"], strict=True):
        for number, run in enumerate(runs):
            for split, line in [("train", ":"), ("valid", "-")]:
                curve = store.curve(run, f"{split}/{quantity}")
                kept = [place for place, epoch in enumerate(curve) if epoch == run.metrics.get("epoch/best")]
                axes.plot(
                    list(curve),
                    list(curve.values()),
                    line,
                    color=f"C{number % 10}",
                    marker="o",
                    markevery=kept if split == "valid" else [],
                    label=short(run.name, 60) if (split, quantity) == ("valid", "loss") else None,
                )
        over_epochs(axes, quantity)
    figure.legend(loc="outside lower center", ncols=min(len(runs), 3), frameon=False)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(content, format="svg", metadata={"Date": None})
    return embedded("svg+xml", content.getvalue())


def _confusion(run: EvaluatedRun, store: Runs) -> str:
    with TemporaryDirectory() as folder:
        picture = store.artifact(run, CONFUSION, Path(folder))
        shown = f'<img alt="" src="{embedded("png", picture.read_bytes())}">' if picture else f"it has no {CONFUSION}"
    return f"<figure class=matrix><figcaption>{text(run.name)}</figcaption>{shown}</figure>"


def _differing(first: EvaluatedRun, second: EvaluatedRun) -> list[str]:
    """Return the images that just one of two runs gets right, the most confident mistakes of the other first."""
    if first.data["testing"] != second.data["testing"]:
        return []
    parts = [f"<h2>Images on which {text(first.name)} and {text(second.name)} differ</h2>"]
    pairs = [(first, second), (second, first)]
    each_alone = [np.flatnonzero(run.right() & ~other.right()) for run, other in pairs]
    each_shown = [
        alone[np.argsort(-other.shares()[alone], kind="stable")][:MOST]
        for alone, (_, other) in zip(each_alone, pairs, strict=True)
    ]
    images: list[Any] = [[None] * len(shown) for shown in each_shown]
    try:
        tested = tested_images(first)
        images = [tested.read(torch.from_numpy(shown)).numpy() for shown in each_shown]
    except InputError as error:  # of the set, or of a shard of it
        parts.append(f"<p>They are not shown, only named: {text(str(error))}</p>")
    for (run, _), alone, shown, pixels in zip(pairs, each_alone, each_shown, images, strict=True):
        some = f"{len(shown)} of {len(alone):,}" if len(shown) < len(alone) else f"{len(alone)}"
        parts.append(f"<h3>Right in {text(run.name)} alone: {some} image{'s' * (len(alone) != 1)}</h3>")
        for place, image in zip(shown, pixels, strict=True):
            row = first.predictions.iloc[place]
            lines = [f"<small>{text(row['source'])}</small>", f"is {text(row['label'])}"]
            for each in (first, second):
                share = f" {each.shares()[place]:.0%}" if each.gives_probabilities else ""
                lines.append(f"{text(each.name)}: {text(each.predictions['predicted'].iloc[place])}{share}")
            picture = "" if image is None else f'<img alt="" src="{_png(image)}">'
            parts.append(f"<figure class=image>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    return parts


def tested_images(run: EvaluatedRun) -> Split:
    """Return the images that a run was tested on, in its order. Raises InputError if the workspace lacks them."""
    prepared = Prepared(PREPARED)
    if not run.has_images(prepared, "test"):
        raise InputError(f"{PREPARED} holds other test images than those of {run.name}")
    return prepared.split("test", torch.device("cpu"))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image, (h, w) or (3, h, w), of TILE pixels a side at most."""
    image = Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0))
    image.thumbnail((TILE, TILE))
    content = io.BytesIO()
    image.save(content, "png")
    return embedded("png", content.getvalue())

"""The mistakes as a page to look through: one file that needs no other, and nothing from the network."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stages.base.text import harmless

if TYPE_CHECKING:
    from stages.report.pictures import Result

MOST = 1000  # mistakes on the page
SIDE = 64  # pixels of a thumbnail, at most
COLUMNS = 25  # of thumbnails in the one image that holds all

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Mistakes</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 14px sans-serif; margin: 1.5em; color: #222 }
h2 { font-size: 1em; margin: 1.5em 0 .5em }
.group { display: flex; flex-wrap: wrap; gap: 10px }
figure { margin: 0; width: 112px }
figure > div { width: 96px; height: 96px; image-rendering: pixelated; background-image: url(%(image)s) }
figcaption { font-size: 11px; overflow-wrap: anywhere; color: #555 }
figcaption b { color: #222 }
</style>
<h1>Mistakes</h1>
<p id="summary"></p>
<p><label>Sorted by <select id="by">
<option value="pair">what was confused, the most frequent first</option>
<option value="surest">confidence, the surest first</option>
<option value="least">confidence, the least sure first</option>
<option value="file">file</option>
</select></label>
<label>showing <select id="which"><option value="">all</option></select></label></p>
<main></main>
<script>
const data = %(data)s
const text = (tag, content, into) => {
  const made = into.appendChild(document.createElement(tag))
  made.textContent = content
  return made
}
const by = document.getElementById("by"), which = document.getElementById("which")
const key = row => `${row.label} ${row.predicted}`
const pairs = new Map(data.pairs.map(([label, predicted, count]) => [
  key({label, predicted}), `${data.classes[label]} called ${data.classes[predicted]}: ${count}`]))
for (const [pair, name] of pairs) text("option", name, which).value = pair
document.getElementById("summary").textContent = data.summary
const surest = (a, b) => b.confidence - a.confidence
const orders = { pair: surest, surest, least: (a, b) => surest(b, a),
  file: (a, b) => a.file < b.file ? -1 : a.file > b.file ? 1 : 0 }
const SIDE = 96
function card(row, into) {
  const figure = text("figure", "", into), image = text("div", "", figure), caption = text("figcaption", "", figure)
  const left = row.place %% data.columns, above = Math.floor(row.place / data.columns)
  image.style.backgroundSize = `${SIDE * data.columns}px auto`
  image.style.backgroundPosition = `${-SIDE * left}px ${-SIDE * above}px`
  image.setAttribute("role", "img")
  image.setAttribute("aria-label", row.file)
  const sure = data.probable ? ` ${(100 * row.confidence).toFixed(1)} %%` : ""
  text("b", data.classes[row.predicted] + sure, caption)
  text("div", `is ${data.classes[row.label]}`, caption)
  text("div", row.file, caption)
}
function show() {
  const main = document.querySelector("main"), inPairs = by.value === "pair"
  main.replaceChildren()
  const rows = data.rows.filter(row => !which.value || key(row) === which.value).sort(orders[by.value])
  for (const [pair, name] of inPairs ? pairs : [["", ""]]) {
    const own = inPairs ? rows.filter(row => key(row) === pair) : rows
    if (own.length && name) text("h2", name, main)
    const group = text("div", "", main)
    group.className = "group"
    for (const row of own) card(row, group)
  }
}
by.onchange = which.onchange = show
show()
</script>
</html>
"""


def write(file: Path, result: "Result") -> None:
    """Write the page of the mistakes of a result: the surest of them, where there are more than a page holds."""
    confidence = result.probabilities.max(1).values
    wrong = (result.predicted != result.labels).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MOST]
    rows = [
        {
            "place": place,
            "file": harmless(result.files[image]),
            "label": int(result.labels[image]),
            "predicted": int(result.predicted[image]),
            "confidence": round(float(confidence[image]), 4),
        }
        for place, image in enumerate(shown.tolist())
    ]
    mistaken = result.confusion - result.confusion.diag().diag()
    pairs = [[label, predicted, int(mistaken[label, predicted])] for label, predicted in mistaken.nonzero().tolist()]
    few = f"the {len(rows):,} surest of {len(wrong):,}" if len(rows) < len(wrong) else f"{len(wrong):,}"
    data = {
        "classes": [harmless(name) for name in result.classes],
        "columns": COLUMNS,
        "pairs": sorted(pairs, key=lambda row: (-row[2], row[0], row[1])),
        "probable": result.is_probable,
        "rows": rows,
        "summary": f"{few} mistakes in {len(result.labels):,} test images",
    }
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # which would end the script
    image = base64.b64encode(sprite(result.images, shown)).decode() if rows else ""
    file.write_text(PAGE % {"data": content, "image": f"data:image/png;base64,{image}"}, encoding="utf-8")


def sprite(images: Callable[[Tensor], Tensor], places: Tensor) -> bytes:
    """Return a PNG of square images as thumbnails in rows of COLUMNS, as few at once as stand in a row.

    `images` gives those at places, int64 (n,), as uint8 (n, h, w) or (n, 3, h, w).
    """
    rows = [_row(images(some)) for some in places.split(COLUMNS)]
    pixels = torch.cat(rows).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _row(images: Tensor) -> Tensor:
    """Return thumbnails of up to COLUMNS images beside each other, uint8 (side, COLUMNS * side, 1 or 3)."""
    tiles = images[:, None] if images.ndim == 3 else images
    if tiles.shape[-1] > SIDE:
        tiles = F.adaptive_avg_pool2d(tiles.float(), SIDE).round().to(torch.uint8)
    n, channels, side, _ = tiles.shape
    row = tiles.new_zeros(COLUMNS, channels, side, side)
    row[:n] = tiles
    return row.permute(2, 0, 3, 1).reshape(side, COLUMNS * side, channels)

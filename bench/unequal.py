"""Classes of 300, 80 and 20 photographs: how many of the rare ones are found, by each of train.balance, over seeds.

    python -m bench.unequal --seeds 5

draws the photographs (discs, squares and triangles before uneven grounds, with noise, as JPEG), sweeps over
train.balance and seeds in a fresh clone, and prints the recall of each class, and what tools.compare says of the seeds
of each. Some five minutes on two cores of an x86-64 server.
"""

import os
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from bench.clones import finish, fresh, start
from stages.base import cli
from stages.base.instructions import cpu_model
from stages.tracking.git import git

COUNTS = {"disc": 300, "square": 80, "triangle": 20}
CORNERS = {"square": 4, "triangle": 3}
SIDE = 64  # pixels
BALANCES = ("none", "loss", "sampling")


def main() -> None:
    parser = cli.parser("bench.unequal", __doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    with fresh() as clone:
        photographs(clone / "data/raw/shapes")
        overrides = {
            "prepare.source": "folder",
            "prepare.path": "data/raw/shapes",
            "prepare.image_size": 32,
            "prepare.test_fraction": 0.4,
            "train.monitor": "macro_f1",
            "train.epochs": arguments.epochs,
            "train.optimizer.name": "AdamW",
            "train.net.arguments.Net.widths": "[16,32]",
            "train.balance": ",".join(BALANCES),
            "train.seed": f"range({arguments.seeds})",
        }
        finish(start(clone, "dvc", "add", "-q", "data/raw/shapes"))
        git("add", "data/raw", folder=clone)
        git("commit", "-q", "-m", "photographs", folder=clone)
        options = [word for name, value in overrides.items() for word in ("-S", f"{name}={value}")]
        finish(start(clone, "python", "-m", "tools.sweep", "--name", "shapes", "--jobs", "2", *options))
        print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, test images of seeds 0 to {arguments.seeds - 1}\n")
        print(table(clone))
        said = finish(start(clone, "python", "-m", "tools.compare", *names(clone)))
        print(*(f"\n{line}" for line in said.splitlines() if " over " in line), sep="")


def photographs(folder: Path) -> None:
    """Write the photographs, one folder a class: the same ones each time."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            photograph(name, rng).save(folder / f"{name}/{number:03}.jpg", quality=80)


def photograph(name: str, rng: np.random.Generator) -> Image.Image:
    """Return a light shape of any size, place and some turn, before a darker ground that is nowhere the same."""
    ground = rng.integers(0, 130, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(ground).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    x, y, radius = *rng.uniform(24, SIDE - 24, 2), rng.uniform(13, 20)
    draw, colour = ImageDraw.Draw(image), tuple(rng.integers(120, 256, 3).tolist())
    if name in CORNERS:
        angles = rng.uniform(-0.3, 0.3) - np.pi / 2 + np.arange(CORNERS[name]) * 2 * np.pi / CORNERS[name]
        draw.polygon([(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles], fill=colour)
    else:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float64) + rng.normal(0, 25, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def names(clone: Path) -> list[str]:
    """Return the sweep's experiments, those without a balance first."""
    shown = finish(start(clone, "dvc", "exp", "list", "--name-only")).split()
    return sorted((name for name in shown if name.startswith("shapes-")), key=lambda name: (_balance(name), name))


def _balance(name: str) -> int:
    return next(place for place, balance in enumerate(BALANCES) if balance in name)


def table(clone: Path) -> str:
    """Return for each balance the recall of each class: the mean over the seeds, and each seed's."""
    rows: dict[str, list[pd.Series]] = {balance: [] for balance in BALANCES}
    for name in names(clone):
        finish(start(clone, "dvc", "exp", "apply", name))
        finish(start(clone, "dvc", "checkout", "-q"))
        rows[BALANCES[_balance(name)]].append(pd.read_csv(clone / "plots/classes.csv").set_index("class")["recall"])
    lines = ["| train.balance | " + " | ".join(f"recall of {name}" for name in COUNTS) + " |", "|---" * 4 + "|"]
    for balance, found in rows.items():
        of_class = [[float(recall[name]) for recall in found] for name in COUNTS]
        cells = [f"{mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})" for values in of_class]
        lines.append(f"| {balance} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)

"""How time and memory of the stages grow with the set: 1, 2, 4 and 8 times Fashion-MNIST, as files of a user.

    python -m bench.growth /tmp/growth

writes the images as PNG files into the folder, unless they are there, each time with noise of its own, since equal
images are refused: 560,000 files. Prints a table in Markdown: seconds, and peak memory without the page cache; and how
far the times are from the straight line through them.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from bench.clones import fresh
from bench.watched import Cost, cost
from stages.base import cli
from stages.base.files import replacing
from stages.base.instructions import cpu_model
from stages.base.params import NOTHING
from stages.base.yaml import read_yaml
from stages.sources import published

TIMES = (1, 2, 4, 8)
CSV = {"image": "image", "folder": None, "suffix": None, "label": "label", "split": None}
STAGES = ("prepare", "train", "evaluate")


def main() -> None:
    parser = cli.parser("bench.growth", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=70_000, help="of Fashion-MNIST's; fewer to try it out")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not (folder / "images").exists():
        write(folder / "images", arguments.images)
    costs = {times: measured(folder, times, arguments.epochs) for times in TIMES}
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores; {arguments.epochs} epochs\n")
    print("| times | images | " + " | ".join(f"{stage}, s | MB" for stage in STAGES) + " |")
    print("|---" * (2 + 2 * len(STAGES)) + "|")
    for times, found in costs.items():
        cells = [f"{found[stage].seconds:.1f} | {found[stage].peak / 1e6:,.0f}" for stage in STAGES]
        print(f"| {times} | {times * arguments.images:,} | " + " | ".join(cells) + " |")
    for stage in STAGES:
        seconds = [found[stage].seconds for found in costs.values()]
        slope, start = np.polyfit(TIMES, seconds, 1)
        worst = max(abs(took / (start + slope * times) - 1) for times, took in zip(TIMES, seconds, strict=True))
        print(f"\n{stage}: {start:.1f} s and {slope:.1f} s for each Fashion-MNIST; at most {worst:.0%} off that line")


def write(folder: Path, n_images: int) -> None:
    """Write the images with a table for each multiple."""
    source = published.fashion_mnist(NOTHING)
    assert source.images is not None
    images, labels = source.images[:n_images], source.rows["label"][:n_images]
    random = np.random.RandomState(0)
    with replacing(folder) as partial:  # main takes an existing folder for a complete one
        rows = []
        with tqdm(total=max(TIMES) * len(images), unit=" images") as progress:
            for times in range(max(TIMES)):
                for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                    name = f"{times}/{number // 1000}/{number}.png"
                    if number % 1000 == 0:
                        (partial / name).parent.mkdir(parents=True)
                    noise = random.randint(-4, 5, image.shape) if times else 0
                    Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(partial / name)
                    rows.append((name, label))
                    progress.update()
        for times in TIMES:
            pd.DataFrame(rows[: times * len(images)], columns=["image", "label"]).to_csv(
                partial / f"{times}.csv", index=False
            )


def measured(folder: Path, times: int, epochs: int) -> dict[str, Cost]:
    """Return what each stage takes for so many times the set."""
    params: dict[str, dict[str, Any]] = {
        "prepare": {"source": "csv", "path": str(folder / "images"), "csv": CSV | {"file": f"{times}.csv"}},
        "train": {"epochs": epochs},
    }
    with fresh() as clone:
        pipeline = read_yaml((clone / "dvc.yaml").read_bytes(), "dvc.yaml")["stages"]
        paths = {stage: pipeline[stage]["cmd"].split()[4:] for stage in STAGES}
        for file in tqdm(pd.read_csv(folder / "images" / f"{times}.csv")["image"], unit=" files", disable=None):
            forget(folder / "images" / file)
        return {stage: cost(clone, stage, params, *paths[stage]) for stage in STAGES}


def forget(file: Path) -> None:
    """Take a file out of the page cache, which may be too small for the largest set: all are read from the disk."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    cli.run(main)

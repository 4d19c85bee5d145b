"""How fast prepare decodes, beside torchvision's ImageFolder in a DataLoader with as many workers.

    python -m bench.decode --times 5

writes Fashion-MNIST as 70,000 PNG files into a temporary folder, once, and then takes turns: all files into
images.npy, as prepare does, and all files as batches of 256. 3 minutes on two cores. Importing torch, 1.4 s, is not
in the times, though prepare does it only to decode files.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, PILToTensor

from stages.base import cli
from stages.base.params import load_params
from stages.base.processes import cores
from stages.sources import decoding, folders
from stages.sources.images import ImageSpec
from stages.sources.loading import load_source
from stages.sources.pixels import new_array
from stages.sources.source import table

MAX_PIXELS = 50_000_000


def main() -> None:
    parser = cli.parser("bench.decode", __doc__)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder, target = Path(name) / "images", Path(name) / "images.npy"
        write(folder)
        ours, theirs = [], []
        for turn in range(arguments.times):
            ours.append(timed(partial(by_prepare, folder, target)))
            theirs.append(timed(partial(by_image_folder, folder)))
            print(
                f"{turn + 1}: prepare {ours[-1][0]:.1f} s, processor time {ours[-1][1]:.1f} s;"
                f" ImageFolder {theirs[-1][0]:.1f} s, processor time {theirs[-1][1]:.1f} s",
                flush=True,
            )
    for name, which in (("time", 0), ("processor time", 1)):
        ratios = [other[which] / mine[which] for mine, other in zip(ours, theirs, strict=True)]
        print(
            f"{name} with {cores()} processes each: ImageFolder takes {median(ratios):.2f} times that of prepare"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def write(folder: Path) -> None:
    """Write Fashion-MNIST as PNG files, one folder a class."""
    source = load_source(load_params().prepare.model_copy(update={"source": "fashion_mnist"}))
    assert source.images is not None
    for name in source.classes:
        (folder / name.replace("/", "_")).mkdir(parents=True)
    for row, (image, label) in enumerate(zip(source.images, source.rows["label"], strict=True)):
        Image.fromarray(image).save(folder / label.replace("/", "_") / f"{row:05}.png")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that the work takes, and its processor time, with that of the processes it starts.

    On a busy machine the first of the two says little.
    """
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def by_prepare(folder: Path, target: Path) -> None:
    """Find all images and decode them into `target`."""
    rows, _ = table(folders.from_folder(load_params().prepare, folder))
    array = new_array(target, (len(rows), 28, 28))
    read = decoding.file_reader(decoding.paths(rows["source"], folder), ImageSpec(1, 28, None, MAX_PIXELS))
    _, rejections = decoding.decode(array, read, np.arange(len(rows)), MAX_PIXELS)
    assert not rejections


def by_image_folder(folder: Path) -> None:
    """Find all images and read them as batches."""
    data = ImageFolder(str(folder), Compose([Grayscale(1), PILToTensor()]))
    loader: DataLoader[torch.Tensor] = DataLoader(data, batch_size=256, num_workers=cores())
    assert sum(len(images) for images, _ in loader) == len(data)


if __name__ == "__main__":
    main()

"""A set that need not fit into memory: what prepare and train take for it.

    python -m bench.large /tmp/large

writes 160,000 JPEG files of 128x128 in colour into the folder, 0.6 GB, and prepares them, 7.9 GB, unless both exist
already. Prints the time and the peak memory of each stage, without the page cache. 12 minutes on two cores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from bench.clones import fresh
from bench.watched import cost
from stages.base import cli
from stages.base.files import replacing

N_IMAGES, SIDE, N_CLASSES = 160_000, 128, 10
NET = {"name": "Net", "arguments": {"Net": {"widths": [4], "kernel": 5, "pool": 2, "hidden": [], "dropout": 0.0}}}


def main() -> None:
    parser = cli.parser("bench.large", __doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    own = {"source": "folder", "path": str(folder / "images"), "channels": 3, "shard_mb": None, "shards_to": None}
    params: dict[str, dict[str, Any]] = {"prepare": own}
    if not (folder / "images").exists():
        write(folder / "images")
    with fresh() as clone:
        if not (folder / "prepared").exists():
            print("prepare:", cost(clone, "prepare", params, folder / "prepared"), flush=True)
        size = (folder / "prepared" / "images.npy").stat().st_size
        print(f"{N_IMAGES:,} images, {size / 1e9:.2f} GB")
        for workers in (0, 2):
            train = {"train": {"epochs": 1, "workers": workers, "net": NET}}
            took = cost(clone, "train", params | train, folder / "prepared", "net.safetensors", "train.csv")
            print(f"train, {workers} workers:", took, flush=True)


def write(folder: Path) -> None:
    """Write the images: a square of the class's colour on smooth noise of their own, which is quick and compresses."""
    random = np.random.RandomState(0)
    with replacing(folder) as partial:  # main takes an existing folder for a complete one
        for name in range(N_CLASSES):
            (partial / f"class{name}").mkdir(parents=True)
        for row in tqdm(range(N_IMAGES), unit=" images"):
            label = row % N_CLASSES
            coarse = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            left, top = random.randint(0, SIDE - 40, 2).tolist()
            image.paste((25 * label, 255 - 25 * label, 128), (left, top, left + 40, top + 40))
            image.save(partial / f"class{label}" / f"{row:06}.jpg", quality=80)


if __name__ == "__main__":
    main()

"""A set that need not fit into memory: what prepare and train take for it.

    python -m bench.large /tmp/large

writes 160,000 JPEG files of 128x128 in colour into the folder, 0.6 GB, and prepares them, 7.9 GB, unless both exist
already. Prints the time and the peak memory of each stage, without the page cache. 12 minutes on two cores.
"""

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML
from tqdm import tqdm

from stages.base import cli
from stages.base.files import replacing

N_IMAGES, SIDE, N_CLASSES = 160_000, 128, 10
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = cli.parser("bench.large", __doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "images").exists():
        write(folder / "images")
    if not (folder / "prepared").exists():
        stage(folder, "prepare", {}, [folder / "prepared"])
    size = (folder / "prepared" / "images.npy").stat().st_size
    print(f"{N_IMAGES:,} images, {size / 1e9:.2f} GB")
    for workers in (0, 2):
        paths = [folder / "prepared", folder / "net.safetensors", folder / "train.csv"]
        stage(folder, "train", {"workers": workers}, paths)


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


def stage(folder: Path, name: str, changes: dict[str, object], paths: Sequence[Path]) -> None:
    """Run a stage on its own, with a small net for one epoch, and print the time and the peak of memory."""
    code = copy_of_the_code(folder / "code", changes)
    start = time.perf_counter()
    peak = watched([sys.executable, "-m", f"stages.{name}", *map(str, paths)], code)
    print(
        f"{name} {changes or ''}: {time.perf_counter() - start:.0f} s, peak of memory {peak / 1e9:.2f} GB", flush=True
    )


def copy_of_the_code(folder: Path, changes: dict[str, object]) -> Path:
    """Return a folder in which stages run with params of their own; `changes` are of the section train."""
    folder.mkdir(exist_ok=True)
    yaml = YAML()
    values = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["prepare"].update({"source": "folder", "path": str(folder.parent / "images"), "channels": 3})
    values["train"].update({"epochs": 1, **changes})
    values["train"]["net"]["arguments"]["Net"]["widths"] = [4]
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    shutil.copytree(ROOT / "stages", folder / "stages", dirs_exist_ok=True)
    return folder


def watched(command: Sequence[str], folder: Path) -> int:
    """Run a command and return the peak of its memory as `anonymous` measures it. Raises RuntimeError if it fails."""
    process, peak = subprocess.Popen(command, cwd=folder), 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.5)  # the kernel takes a while to count the pages of 8 GB
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return peak


def anonymous(number: int) -> int:
    """Return the memory of a process and those it started, bytes, without the page cache.

    What they share after a fork counts once: Linux's Pss_Anon divides it among the processes.
    """
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(number)
        for each in [process, *process.children(recursive=True)]:
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="utf-8")
            found = re.search(r"Pss_Anon:\s+(\d+) kB", rollup)
            total += int(found[1]) * 1024 if found else 0
    return total


if __name__ == "__main__":
    main()

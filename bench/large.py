"""A set larger than memory: what prepare takes for it.

    python -m bench.large /tmp/large

makes 160,000 JPEG files of 128x128 in colour in the folder, if they are not there, 0.6 GB, prepares them, 7.9 GB, and
prints the peak of anonymous memory (RssAnon of the stage and its processes, every 50 ms), which leaves out the page
cache. 10 minutes on two cores.
"""

import argparse
import contextlib
import re
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

N_IMAGES, SIDE, N_CLASSES = 160_000, 128, 10
ROOT = Path(__file__).parents[1]
CHANGES = {"source": "folder", "channels": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "images").exists():
        write(folder / "images")
    code = copy_of_the_code(folder / "code")
    start = time.perf_counter()
    peak = watched([sys.executable, "-m", "stages.prepare", str(folder / "images"), str(folder / "prepared")], code)
    seconds = time.perf_counter() - start
    size = (folder / "prepared" / "images.npy").stat().st_size
    print(
        f"prepare: {N_IMAGES:,} images, {size / 1e9:.2f} GB, in {seconds:.0f} s, {N_IMAGES / seconds:,.0f} images/s;"
        f" peak of anonymous memory {peak / 1e9:.2f} GB"
    )


def write(folder: Path) -> None:
    """Write the images: a square of the class's colour on smooth noise of their own, which is quick and compresses."""
    random = np.random.RandomState(0)
    for name in range(N_CLASSES):
        (folder / f"class{name}").mkdir(parents=True)
    for row in tqdm(range(N_IMAGES), unit=" images"):
        label = row % N_CLASSES
        coarse = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        left, top = random.randint(0, SIDE - 40, 2).tolist()
        image.paste((25 * label, 255 - 25 * label, 128), (left, top, left + 40, top + 40))
        image.save(folder / f"class{label}" / f"{row:06}.jpg", quality=80)


def copy_of_the_code(folder: Path) -> Path:
    """Return a folder in which stages run with knobs of their own."""
    folder.mkdir(exist_ok=True)
    yaml = YAML()
    values = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["prepare"].update(CHANGES)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    (folder / "stages").mkdir(exist_ok=True)
    for path in (ROOT / "stages").glob("*.py"):
        (folder / "stages" / path.name).write_bytes(path.read_bytes())
    return folder


def watched(command: Sequence[str], folder: Path) -> int:
    """Run a command and return the peak of `anonymous`. Raises RuntimeError if the command fails."""
    process, peak = subprocess.Popen(command, cwd=folder), 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return peak


def anonymous(number: int) -> int:
    """Return RssAnon, bytes, of a process and those that it started. What they share after a fork counts for each."""
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(number)
        for each in [process, *process.children(recursive=True)]:
            status = Path(f"/proc/{each.pid}/status").read_text(encoding="utf-8")
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            total += int(found[1]) * 1024 if found else 0
    return total


if __name__ == "__main__":
    main()

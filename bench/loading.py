"""Training from the memory map through workers, beside training on images held in memory: images a second, and memory.

    python -m bench.loading big/prepared --gigabytes 8

makes a prepared set of noise, of 64x64 in colour, unless the folder is there, and trains the Net on it in turns. Prints
the rates, their ratio, and the peak of anonymous memory (that of the process and its workers, page cache aside) before
anything was held in memory. 8 GB take some minutes on two cores, and as much of the disk.
"""

import argparse
import os
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn

from stages.batches import Loader, Normalise, Prepared, Split, scores
from stages.nets import Net
from stages.outputs import replacing, write_csv, write_json

SIDE, CHANNELS, CLASSES = 64, 3, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--held", type=float, default=2, help="gigabytes of them that are held in memory to compare")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.prepared.exists():
        make(arguments.prepared, int(arguments.gigabytes * 1e9) // (CHANNELS * SIDE * SIDE))

    data = Prepared(arguments.prepared)
    net = nn.Sequential(Normalise(data.mean, data.std), Net(CLASSES, data.channels, data.image_size))
    mapped = data.split("train", torch.device("cpu"))
    loader = Loader(mapped, 64, 0, workers=arguments.workers)
    with Peak() as peak:
        train(net, loader, 1, arguments.steps)
        scores(net, data.split("valid", torch.device("cpu")))
    print(f"{mapped.images.nbytes / 1e9:.1f} GB of images, peak of anonymous memory {peak.bytes / 1e9:.2f} GB")

    count = min(len(mapped.labels), int(arguments.held * 1e9) // mapped.images[0].nbytes)
    held = Split(mapped.read(slice(count)).numpy(), mapped.labels[:count], torch.arange(count))
    ways = {
        f"memory map, {arguments.workers} workers": loader,
        "memory map, no worker": Loader(mapped, 64, 0),
        "held in memory, no worker": Loader(held, 64, 0),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(2, arguments.times + 2):
        for way, each in ways.items():
            rates[way].append(train(net, each, turn, arguments.steps))
            print(f"{way}: {rates[way][-1]:.0f} images/s", flush=True)
    medians = {way: float(np.median(values)) for way, values in rates.items()}
    for way, median in medians.items():
        print(f"{way}: median {median:.0f} images/s, ratio {median / medians['held in memory, no worker']:.3f}")


def train(net: nn.Module, loader: Loader, epoch: int, steps: int) -> float:
    """Train for so many steps, and return the images a second from the second one on."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seen, started = 0, 0.0
    net.train()
    for step, (images, targets) in enumerate(loader.epoch(epoch)):
        loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:  # workers have started
            started = time.perf_counter()
        else:
            seen += len(targets)
        if step == steps:
            break
    return seen / (time.perf_counter() - started)


def make(folder: Path, count: int) -> None:
    """Write noise as prepare writes a set; one image in a hundred is for validation, and one for the test."""
    random = np.random.default_rng(0)
    noise = random.integers(256, size=(4096, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    with replacing(folder) as partial:
        partial.mkdir()
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, CHANNELS, SIDE, SIDE)}
        with (partial / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, len(noise)):
                file.write((noise[: count - start] + np.uint8(start // len(noise))).data)
        split = np.select([np.arange(count) % 100 == 98, np.arange(count) % 100 == 99], ["valid", "test"], "train")
        labels = random.integers(CLASSES, size=count)
        write_csv(
            partial / "manifest.csv",
            pd.DataFrame({"index": range(count), "split": split, "label": labels, "source": "noise"}),
        )
        write_json(
            partial / "dataset.json",
            {
                "source": "noise",
                "classes": [str(label) for label in range(CLASSES)],
                "channels": CHANNELS,
                "image_size": SIDE,
                "mean": [0.5] * CHANNELS,
                "std": [0.29] * CHANNELS,
                "sizes": {name: int((split == name).sum()) for name in ("train", "valid", "test")},
                "sha256": dict.fromkeys(("train", "valid", "test"), "0" * 64),
            },
        )


class Peak:
    """The most anonymous memory that this process and its children had at a time while it was watched, in bytes."""

    bytes = 0

    def __enter__(self) -> "Peak":
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process(os.getpid())
        while not self._end.wait(0.1):
            family = [me, *me.children(recursive=True)]
            self.bytes = max(self.bytes, sum(anonymous(process.pid) for process in family))


def anonymous(pid: int) -> int:
    """Return the bytes of a process's anonymous memory; a page that forked processes share is shared out to them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


if __name__ == "__main__":
    main()

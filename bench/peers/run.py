"""What each peer does: it trains the page's Net, or another, on Fashion-MNIST, and prints what was measured, as JSON.

    python -m bench.peers.plain FOLDER --batch 128

FOLDER is what `bench.training` makes. The Net: 32 maps of 5x5, ReLU, 2x2 max-pooling, and a linear layer with a ReLU
on its output and a bias that starts at 1. The training: Adam at a learning rate of 0.001, cross entropy, a validation
after every epoch. Nothing of stages/ is imported here: it would limit the CPU's instructions for the peers, too.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

LR = 0.001
N_CLASSES = 10
WIDTHS, KERNEL = (32, 64, 64), 3  # of "three convolutions", each with ReLU and 2x2 max-pooling


class Run:
    """One training: its settings, its data, and the times that it notes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder: Path = arguments.folder
        self.batch_size: int = arguments.batch
        self.epochs: int = arguments.epochs
        self.precision: str = arguments.precision  # float32 | bfloat16
        self.net: str = arguments.net
        self.seed: int = arguments.seed
        self.workers: int = arguments.workers  # processes that load images
        self.threads = len(os.sched_getaffinity(0))
        self._times: list[float] = []

    def images(self, split: str) -> npt.NDArray[np.float32]:
        """Return the images of "train", "valid" or "test", (n, 28, 28), of mean 0 and deviation 1."""
        images: npt.NDArray[np.float32] = np.load(self.folder / f"{split}_images.npy")
        return images

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """Return a split's labels, (n,)."""
        labels: npt.NDArray[np.int64] = np.load(self.folder / f"{split}_labels.npy")
        return labels

    def note(self) -> None:
        """Note the time: first after the first step, last when the training has ended, its last validation included."""
        self._times.append(time.time())

    def measured(self, started: float) -> dict[str, float]:
        """Return seconds from `started`, a time, to the first step's end; images a second after it; and MB at most.

        Of processes that load images, what they share with this one counts for each.
        """
        seconds = self._times[-1] - self._times[0]
        trained = self.epochs * len(self.labels("train")) - self.batch_size
        # Not ru_maxrss, which starts with that of the process that started this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        kilobytes = int(status["VmHWM"].split()[0])
        kilobytes += self.workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return {
            "first_step": self._times[0] - started,
            "images_per_second": trained / seconds,
            "memory": kilobytes / 1024,
        }


def main(train: Callable[[Run], npt.NDArray[np.int64]]) -> None:
    """Run a peer's `train`, which returns the predicted class of each test image."""
    parser = argparse.ArgumentParser(description=sys.modules[train.__module__].__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--net", default="Net")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, default=time.time(), help="when this process was, seconds since 1970")
    arguments = parser.parse_args()
    run = Run(arguments)
    accuracy = float((train(run) == run.labels("test")).mean())
    print(json.dumps(run.measured(arguments.started) | {"accuracy": accuracy}))

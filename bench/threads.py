"""What a count of threads costs on small images: digits on a quiet machine, and beside others at work.

    python -m bench.threads

trains each in a process of its own. "Busy" is beside two processes for each core that compute all the time, so that a
thread that waits for another waits for one that has no core.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tqdm import tqdm

from stages import train
from stages.base import cli
from stages.base.instructions import cpu_model
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from tools.sweep import overrides

NETS = {
    "Net": [],
    "Net, two convolutions": ["train.net.arguments.Net.widths=[32,64]", "train.net.arguments.Net.kernel=2"],
    "Net, hidden layer": ["train.net.arguments.Net.hidden=[128]"],
}
ROUNDS, EPOCHS, STEPS = 5, 10, 20
CORES = len(os.sched_getaffinity(0))
COUNTS = (1, CORES, 2 * CORES)


def main() -> None:
    cli.parser("bench.threads", __doc__).parse_args()
    root = Path.cwd()
    kinds = [(net, count, busy) for net in NETS for count in COUNTS for busy in (False, True)]
    taken: dict[tuple[str, int, bool], list[float]] = {kind: [] for kind in kinds}
    with TemporaryDirectory() as folder:
        prepare(overrides.check([]).prepare, Path(folder, "prepared"))
        for _ in tqdm(range(ROUNDS), unit="round"):
            for net, count, busy in kinds:
                command = [sys.executable, "-m", "bench.threads", "--one", folder, str(count), *NETS[net]]
                with others(2 * CORES * busy):
                    shown = subprocess.check_output(command, cwd=root, text=True)
                taken[net, count, busy].append(float(shown.split()[-1]))
    print(f"{cpu_model()}, {CORES} cores; ms a step of 64 digits, with validation, median of {ROUNDS} trainings\n")
    print("| | " + " | ".join(f"{count} threads{', busy' * busy}" for busy in (False, True) for count in COUNTS) + " |")
    print("|---" * (1 + 2 * len(COUNTS)) + "|")
    for net in NETS:
        medians = [median(taken[net, count, busy]) for busy in (False, True) for count in COUNTS]
        print(f"| {net} | " + " | ".join(f"{1000 * seconds:.2f}" for seconds in medians) + " |")


def one(folder: str, count: str, *changes: str) -> None:
    """Train once to warm up, and print the seconds that a step of the second time takes."""
    params = overrides.check(["train.device=cpu", f"train.threads={count}", f"train.epochs={EPOCHS}", *changes]).train
    for _ in range(2):
        started = time.perf_counter()
        train.train(
            params,
            Path(folder, "prepared"),
            Path(folder, "net.safetensors"),
            Path(folder, "train.csv"),
            Tracker.off(),
        )
    print((time.perf_counter() - started) / (EPOCHS * STEPS))


@contextmanager
def others(number: int) -> Iterator[None]:
    """Let so many other processes compute meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        cli.run(main)

"""What each level of train.determinism costs: seconds of an epoch of Fashion-MNIST, the levels in turn.

    python -m bench.levels

Each training is a process of its own, since torch takes its instructions when it is imported. 7 minutes on two cores
of an x86-64 server.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from tqdm import tqdm

from stages import train
from stages.base import cli
from stages.base.instructions import Level
from stages.base.params import load_params
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from tools.sweep import overrides

ROOT = Path(__file__).parents[1]
ROUNDS = 5
PRECISIONS = ("float32", "bfloat16")
TRAIN = "from bench.levels import epoch; epoch()"


def main() -> None:
    cli.parser("bench.levels", __doc__).parse_args()
    params = overrides.check(["prepare.source=fashion_mnist"])
    kinds = [(level, precision) for level in get_args(Level) for precision in PRECISIONS]
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(params.prepare, folder / "prepared")
        for _ in tqdm(range(ROUNDS), unit="round"):
            for level, precision in kinds:
                text = (ROOT / "params.yaml").read_text(encoding="utf-8")
                for key, value in {"determinism": level, "precision": precision, "epochs": "1"}.items():
                    text = re.sub(rf"(?m)^(  {key}:) \S+", rf"\1 {value}", text)
                (folder / "params.yaml").write_text(text, encoding="utf-8")
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                command = [sys.executable, "-c", TRAIN]
                shown = subprocess.check_output(command, cwd=folder, env=environment, text=True)
                seconds[level, precision].append(float(shown.split()[-1]))
    for (level, precision), values in seconds.items():
        print(f"{level:8} {precision:8} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")


def epoch() -> None:
    """Train as params.yaml of this folder says, and print the seconds of it."""
    started = time.perf_counter()
    train.train(load_params().train, Path("prepared"), Path("net.safetensors"), Path("train.csv"), Tracker.off())
    print(time.perf_counter() - started)


if __name__ == "__main__":
    cli.run(main)

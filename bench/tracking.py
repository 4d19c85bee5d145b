"""What logging costs: the loop's seconds on Fashion-MNIST with metrics of every step, and of epochs alone, in turn.

    python -m bench.tracking --rounds 5

times the loop of a training, validation included, from its first batch to its last epoch, while the follower brings
what it logs to a SQLite store.
"""

import os
import re
from pathlib import Path
from statistics import median

from bench.clones import finish, fresh, last_run, start
from stages.base import cli
from stages.base.instructions import cpu_model

SETTING = {"source": "fashion_mnist", "epochs": "6", "batch_size": "128"}
TRAIN = ["python", "-m", "stages", "train", "data/prepared", "models/net.safetensors", "metrics/train.csv"]
EPOCHS, EVERY = "0", "1"  # train.log_steps


def main() -> None:
    parser = cli.parser("bench.tracking", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {EPOCHS: [], EVERY: []}
    with fresh() as clone:
        for key, value in SETTING.items():
            put(clone, key, value)
        finish(start(clone, "dvc", "repro", "prepare"))
        for number in range(rounds):
            for setting in (EPOCHS, EVERY) if number % 2 else (EVERY, EPOCHS):
                put(clone, "log_steps", setting)
                finish(start(clone, *TRAIN))
                seconds[setting].append(of_last_run(clone, int(setting)))
    epochs, every = (median(seconds[setting]) for setting in (EPOCHS, EVERY))
    pairs = [one / other for one, other in zip(seconds[EVERY], seconds[EPOCHS], strict=True)]
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, medians of {rounds} rounds")
    print(f"epochs alone {epochs:.2f} s, every step {every:.2f} s: {every / epochs:.3f} times")
    print(f"round by round {min(pairs):.3f} to {max(pairs):.3f}, median {median(pairs):.3f}; goal: at most 1.03")


def put(clone: Path, key: str, value: str) -> None:
    """Set a parameter in params.yaml."""
    path = clone / "params.yaml"
    text, n = re.subn(rf"(?m)^(  {key}:) +\S+", rf"\1 {value}", path.read_text(encoding="utf-8"))
    assert n == 1, key
    path.write_text(text, encoding="utf-8")


def of_last_run(clone: Path, log_steps: int) -> float:
    """Return the seconds of the last run's loop, which has a point of every step or none."""
    client, run = last_run(clone)
    points = client.get_metric_history(run.info.run_id, "step/loss")
    last = max((point.step for point in points), default=0)
    assert len(points) == last, (len(points), last)
    assert bool(points) == bool(log_steps), len(points)
    return run.data.metrics["seconds/training"]


if __name__ == "__main__":
    cli.run(main)

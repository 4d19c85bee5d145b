"""What one waits for on digits, in multiples of what the import of torch and MLflow takes, without a fork server too.

    python -m bench.turnaround --rounds 3

takes 10 minutes on two cores. Each round runs `dvc repro` in a fresh clone, and an experiment and a sweep of twelve,
two at once, after it.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.clones import finish, fresh, start, statuses
from stages.base import cli
from stages.base.instructions import cpu_model
from stages.start.client import SWITCH

EXPERIMENTS = 12
IMPORT, REPRO, ONE, SWEEP = "import torch, mlflow", "dvc repro", "dvc exp run", "tools.sweep"
COMMANDS = {
    IMPORT: [sys.executable, "-c", IMPORT],
    REPRO: ["dvc", "repro"],
    ONE: ["dvc", "exp", "run", "-S", "train.seed=100"],
    SWEEP: ["python", "-m", "tools.sweep", "--jobs", "2", "-S", f"train.seed={','.join(map(str, range(EXPERIMENTS)))}"],
}
GOALS = {REPRO: 5.0, ONE: 3.0, SWEEP: 16.0}


def seconds(command: Sequence[str], clone: Path, switch: str) -> float:
    """Return how long a command takes in a clone, with the fork server switched so."""
    started = time.perf_counter()
    finish(start(clone, "env", f"{SWITCH}={switch}", *command))
    return time.perf_counter() - started


def main() -> None:
    parser = cli.parser("bench.turnaround", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, median seconds of {rounds} rounds\n")
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for switch in ("on", "off") if number % 2 else ("off", "on"):
            with fresh() as clone:
                for name, command in COMMANDS.items():
                    taken.setdefault((name, switch), []).append(seconds(command, clone, switch))
                found = list(statuses(clone).values())
                assert found == [["FINISHED"]] * (EXPERIMENTS + 2), found
    print("| | seconds | times the import | goal | without the server |\n|---|---|---|---|---|")
    for name in COMMANDS:
        took, without = (median(taken[name, switch]) for switch in ("on", "off"))
        ratio, other = took / median(taken[IMPORT, "on"]), without / median(taken[IMPORT, "off"])
        print(f"| {name} | {took:.1f} | {ratio:.1f} | {GOALS.get(name, '')} | {without:.1f} ({other:.1f}) |")


if __name__ == "__main__":
    main()

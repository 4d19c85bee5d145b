"""The time of a sweep with two jobs, over that of the same experiments run one by one by `dvc exp run`.

    python -m bench.sweep --experiments 12

takes 4 minutes on two cores. Both run in fresh clones in which the data are prepared.
"""

import time
from collections.abc import Sequence

from bench.clones import finish, fresh, start, statuses
from stages.base import cli


def seconds(commands: Sequence[Sequence[str]], runs: int) -> float:
    """Return how long the commands take in a fresh clone, one after the other. Together they have to log `runs`."""
    with fresh() as clone:
        finish(start(clone, "dvc", "repro", "prepare"))
        started = time.perf_counter()
        for command in commands:
            finish(start(clone, *command))
        took = time.perf_counter() - started
        assert list(statuses(clone).values()) == [["FINISHED"]] * runs, statuses(clone)
    return took


def main() -> None:
    parser = cli.parser("bench.sweep", __doc__)
    parser.add_argument("--experiments", type=int, default=12)
    count = parser.parse_args().experiments
    seeds = [str(seed) for seed in range(count)]
    sweep = ["python", "-m", "tools.sweep", "--jobs", "2", "-S", f"train.seed={','.join(seeds)}"]
    at_once = seconds([sweep], count)
    one_by_one = seconds([["dvc", "exp", "run", "--name", f"seed-{n}", "-S", f"train.seed={n}"] for n in seeds], count)
    print(f"{count} experiments, two at once: {at_once:.1f} s; one by one: {one_by_one:.1f} s")
    print(f"ratio {at_once / one_by_one:.3f}")


if __name__ == "__main__":
    main()

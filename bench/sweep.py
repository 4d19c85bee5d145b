"""The time of a sweep with two jobs, over that of the same experiments run one by one by `dvc exp run`.

    python -m bench.sweep --experiments 12

takes 4 minutes on two cores. Both run in fresh clones in which the data are prepared.
"""

import time

from bench.clones import finish, fresh, start, statuses
from stages.base import cli


def main() -> None:
    parser = cli.parser("bench.sweep", __doc__)
    parser.add_argument("--experiments", type=int, default=12)
    count = parser.parse_args().experiments
    seeds = [str(seed) for seed in range(count)]

    with fresh() as clone:
        finish(start(clone, "dvc", "repro", "prepare"))
        started = time.perf_counter()
        finish(start(clone, "python", "-m", "tools.sweep", "--jobs", "2", "-S", f"train.seed={','.join(seeds)}"))
        at_once = time.perf_counter() - started
        assert sorted(statuses(clone).values()) == [["FINISHED"]] * count, statuses(clone)

    with fresh() as clone:
        finish(start(clone, "dvc", "repro", "prepare"))
        started = time.perf_counter()
        for seed in seeds:
            finish(start(clone, "dvc", "exp", "run", "--name", f"seed-{seed}", "-S", f"train.seed={seed}"))
        one_by_one = time.perf_counter() - started
        assert sorted(statuses(clone).values()) == [["FINISHED"]] * count, statuses(clone)

    print(f"{count} experiments, two at once: {at_once:.1f} s; one by one: {one_by_one:.1f} s")
    print(f"ratio {at_once / one_by_one:.3f}")


if __name__ == "__main__":
    main()

"""How many of eight experiments that start at once are logged, in a clone that has no store yet.

    python -m bench.at_once --times 10
    python -m bench.at_once --times 10 --sweep

runs eight processes of `dvc exp run --temp`, or one sweep with eight jobs; a time takes 1 minute on two cores.
"""

from bench.clones import finish, fresh, start, statuses
from stages.base import cli

AT_ONCE = 8


def main() -> None:
    parser = cli.parser("bench.at_once", __doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--sweep", action="store_true", help="as a sweep with eight jobs")
    arguments = parser.parse_args()
    options = ["-S", "train.threads=1"]
    if arguments.sweep:
        seeds = ",".join(str(seed) for seed in range(AT_ONCE))
        commands = [["python", "-m", "tools.sweep", "--jobs", str(AT_ONCE), *options, "-S", f"train.seed={seeds}"]]
    else:
        run = ["dvc", "--wait-for-lock", "exp", "run", "--temp", *options]
        commands = [[*run, "--name", f"seed-{seed}", "-S", f"train.seed={seed}"] for seed in range(AT_ONCE)]
    logged = 0
    for time in range(1, arguments.times + 1):
        with fresh() as clone:
            for process in [start(clone, *command) for command in commands]:
                finish(process)
            found = statuses(clone)
        good = list(found.values()).count(["FINISHED"])
        logged += good
        print(f"{time}: {good} of {AT_ONCE} logged once and finished", flush=True)
        if good != AT_ONCE:
            print(found)
    print(f"{logged} of {AT_ONCE * arguments.times}")


if __name__ == "__main__":
    main()

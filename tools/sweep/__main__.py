"""Sweep: many experiments, several at once. Whatever fails or is killed, the same command goes on where it stopped.

    python -m tools.sweep --jobs 2 -S train.optimizer.name=SGD,Adam -S train.seed=0,1,2
    python -m tools.sweep --search 20 -S 'train.optimizer.lr=tag(log,interval(1e-4,1e-1))' -S train.batch_size=32,64

Overrides are those of `dvc exp run -S`; every combination of their values is run. With --search, Optuna chooses from
the values and intervals, and trainings that fall behind are stopped. Each experiment is an ordinary one of DVC, and a
run in MLflow with the tag `sweep`. In the end the configurations stand in a table, the best by validation first, with
mean and 95 % interval over the seeds where there are several: -S train.seed=0,1,2.

    python -m tools.sweep --cluster 10.77.0.1:6379 -S train.optimizer.name=SGD,Adam -S train.seed=0,1,2

runs them on a cluster of Ray's; docs/scale.md says what its nodes need.
"""

import argparse
from contextlib import ExitStack
from functools import partial

from filelock import FileLock, Timeout

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say
from tools.runs import Runs
from tools.sweep.champion import challenge
from tools.sweep.cluster import ClusterRunner
from tools.sweep.experiments import State
from tools.sweep.local import LocalRunner, end_abandoned, gpus_in_reach
from tools.sweep.plan import FOLDER, Plan
from tools.sweep.progress import report
from tools.sweep.results import SweepRuns
from tools.sweep.sweep import Sweep
from tools.tidy.busy import entering


def main() -> None:
    parser = cli.parser("tools.sweep", __doc__)
    positive, whole = partial(_at_least, 1), partial(_at_least, 0)
    parser.add_argument("-S", "--set-param", metavar="KEY=VALUES", action="append", default=[], dest="overrides")
    parser.add_argument("--name", help="begins the experiments' names; by default it follows from overrides and code")
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="experiments at once; by default one a GPU or 1, on a cluster all that fit",
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Ray cluster, HOST:PORT or auto, which runs them")
    parser.add_argument("--git-remote", metavar="NAME", default="origin", help="that the cluster uses; default origin")
    parser.add_argument("--search", type=positive, metavar="N", help="N configurations that Optuna chooses, no grid")
    parser.add_argument("--retries", type=whole, default=1, metavar="N", help="of an experiment that fails; default 1")
    parser.add_argument("--register", metavar="MODEL", help="make the best MODEL@champion if it beats the present one")
    parser.add_argument("--timeout", type=positive, metavar="MINUTES", help="stop an experiment that takes longer")
    arguments = parser.parse_args()
    if not arguments.overrides:
        parser.error("give at least one -S KEY=VALUES")
    gpus = [] if arguments.cluster else gpus_in_reach()
    jobs = arguments.jobs or len(gpus) or 1
    plan = Plan.of(arguments.overrides, arguments.search, arguments.name, None if arguments.cluster else jobs)
    folder = FOLDER / plan.name
    try:
        with ExitStack() as stack:
            with entering():
                stack.enter_context(FileLock(folder / "lock", timeout=0))
            runner: LocalRunner | ClusterRunner
            if arguments.cluster:
                runner = ClusterRunner(plan, arguments.cluster, arguments.git_remote, arguments.jobs)
                jobs = arguments.jobs or runner.room() or 1
            else:
                runner = LocalRunner(plan.name, plan.baseline, jobs, gpus, plan.inputs)
            sweep = Sweep(plan, runner, jobs, arguments.retries, 60 * (arguments.timeout or 0))
            end_abandoned()
            sweep.run()
            for line in runner.runs.add_missing({e.name for e in sweep.experiments if e.state is State.DONE}):
                say(line)
            best = report(plan.name, sweep.experiments)
            if best and arguments.register:
                say(register(best, arguments.register, runner.runs))
    except Timeout as error:
        raise InputError(f"the sweep {plan.name} is running already") from error
    if failed := [experiment for experiment in sweep.experiments if experiment.state is State.FAILED]:
        raise InputError(f"{len(failed)} failed; their output is in {folder}. The same command tries them again.")


def register(best: str, model: str, sweep: SweepRuns) -> str:
    """Let the experiment `best` challenge the champion of the registered model `model`. Return what came of it."""
    runs = Runs()
    run_id = sweep.evaluated().get(best)
    if run_id is None:
        raise InputError(f"{best} has no run in MLflow at {runs.name}, so it cannot be registered")
    return challenge(runs, model, runs.find(run_id))


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


if __name__ == "__main__":
    cli.run(main)

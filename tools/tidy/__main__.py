"""Keep the house: delete what no commit, champion, sweep or best run needs, once you have seen the list.

    python -m tools.tidy --keep 10 --dry-run
    python -m tools.tidy --keep 10

Of MLflow's runs the 10 best by validation keep weights and model, for each set of validation images; so do those that
the registry names, those whose weights a commit of a branch or tag names, and those of a sweep whose folder is in
sweeps/. Of your others weights and model go, the weights from DVC's cache, too, as far as nothing else names them. The
rest stays: commits, experiments, prepared data, metrics, pictures.

Whatever could not be made again here, bit for bit, stays, and the list says why: the run's commit and patch, its data,
the versions of Python and packages, its device, CPU and threads. `python -m tools.rebuild RUN` brings back what went.
Nothing is deleted while a training, a sweep or DVC is at work here, and none can begin from the list to the end.
"""

import sys

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say
from tools.tidy.busy import alone
from tools.tidy.house import House


def main() -> None:
    parser = cli.parser("tools.tidy", __doc__)
    best = "how many runs keep weights and model for being the best, for each set of validation images; default 10"
    parser.add_argument("--keep", type=int, default=10, metavar="N", help=best)
    parser.add_argument("--dry-run", action="store_true", help="show the list, and delete nothing")
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        parser.error("--keep: at least 1, which is best")
    if not (arguments.dry_run or arguments.yes or sys.stdin.isatty()):
        raise InputError("there is no terminal to ask on: --yes deletes without asking, --dry-run shows what would go")
    if arguments.dry_run:
        listed(arguments.keep)
        return
    with alone():
        house = listed(arguments.keep)
        house.empty_trash()
        if house.is_tidy:
            return
        if not (arguments.yes or is_wanted()):
            say("nothing was deleted")
            return
        house.check(House(arguments.keep))  # the question may have stood for hours
        house.remove()
        say("deleted; python -m tools.rebuild RUN brings back what a run has lost")


def listed(keep: int) -> House:
    """Return what there is, and show it. Raises InputError if it cannot be told what can go."""
    try:
        house = House(keep)
        lines = [*house.lines()]
    except OSError as error:
        raise InputError(f"what can go cannot be told: {error}") from error
    say("\n".join(lines))
    return house


def is_wanted() -> bool:
    """Ask, and return whether the answer is yes."""
    try:
        return input("delete these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


if __name__ == "__main__":
    cli.run(main)

"""Keep the house: delete what no commit, champion, sweep or best run needs, once you have seen the list.

    python -m tools.tidy --keep 10 --dry-run
    python -m tools.tidy --keep 10

Models: of MLflow's runs the 10 best by validation keep weights and model, for each set of validation images; so do
those that the registry names, those whose weights a commit of a branch or tag names, and those of a sweep whose folder
is in sweeps/. Of all others weights and model go, the rest stays.

DVC's cache: the outputs of runs without a model, as far as nothing else names them.

Leftovers: journals that have arrived, checkpoints of trainings that have ended, folders of rebuilds that were killed.

Whatever could not be made again here, bit for bit, stays, and the list says why: the run's commit and patch, its data,
the versions of Python and of what computes, its CPU. Commits, experiments and their metrics stay in any case.
`python -m tools.rebuild RUN` brings a run's weights, model and outputs back. Nothing is deleted while a training, a
sweep or DVC is at work here, and none can begin meanwhile.
"""

import sys

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say, warn
from tools.tidy.busy import alone, check_idle
from tools.tidy.house import House
from tools.tidy.piece import shown, table


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
    if not arguments.yes or arguments.dry_run:
        check_idle()
        house = House(arguments.keep)
        show(house)
        if arguments.dry_run or not house.pieces:
            return
        if not is_wanted():
            say("nothing was deleted")
            return
    with alone():
        now = House(arguments.keep)  # since there may be more by now that is needed
        if arguments.yes:
            show(now)
        elif [(piece.kind, piece.what) for piece in now.pieces] != [(piece.kind, piece.what) for piece in house.pieces]:
            raise InputError("something has changed since the list was made: run this again")
        if now.pieces:
            remove(now)


def show(house: House) -> None:
    """Say what stays and why, and what can go."""
    for line in house.remarks:
        say(line)
    for line in table(house.pieces) if house.pieces else ["there is nothing to delete"]:
        say(line)


def is_wanted() -> bool:
    """Ask, and return whether the answer is yes."""
    try:
        return input("delete these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def remove(house: House) -> None:
    """Remove what can go, and say what was done. Raises InputError if some could not, once all have been tried."""
    house.mark()
    removed = failed = 0
    for piece in house.pieces:
        try:
            piece.remove()
            removed += piece.size
        except OSError as error:
            warn(f"{piece.kind} {piece.what}: {error}")
            failed += 1
    say(f"deleted: {shown(removed)}; python -m tools.rebuild RUN brings back what belongs to a run")
    if failed:
        raise InputError(f"{failed} of {len(house.pieces)} could not be deleted, see above")


if __name__ == "__main__":
    cli.run(main)

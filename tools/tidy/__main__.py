"""Keep the house: delete what no commit, champion, sweep or best run needs, once you have seen the list.

    python -m tools.tidy --keep 10 --dry-run
    python -m tools.tidy --keep 10

Models: of MLflow's runs the 10 best by validation keep weights and model, for each set of validation images; so do
those that have an alias in the registry, those whose weights a commit of a branch or tag names, those of a sweep whose
folder is in sweeps/, and those that could not be made again. Of all others weights and model go, the rest stays.

DVC's cache: the outputs of experiments whose run has lost its model go, as far as nothing else needs them. Those of
commits, of the workspace, of DVC's queue and of experiments without a run in MLflow stay, and so do all data that a
.dvc file of any commit or run names. `dvc gc` deletes, in this cache only, never in a remote.

Leftovers: journals that have arrived, or are damaged, checkpoints, copies and folders of what was killed.

Commits, experiments and their metrics stay. `python -m tools.rebuild RUN` brings a run's weights, model and outputs
back. Nothing is deleted while a training, a sweep or DVC is at work here.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.text import say, warn
from stages.tracking.result import PATCH, TRAINING_TAG, WEIGHTS_TAG
from tools import recorded
from tools.runs import Runs, named
from tools.tidy import cache, models
from tools.tidy.busy import check_idle
from tools.tidy.leftovers import Leftovers
from tools.tidy.needed import Needed
from tools.tidy.piece import Piece, shown, table


def main() -> None:
    parser = cli.parser("tools.tidy", __doc__)
    best = "how many runs keep weights and model for being the best, for each set of validation images; default 10"
    parser.add_argument("--keep", type=int, default=10, metavar="N", help=best)
    parser.add_argument("--dry-run", action="store_true", help="show the list, and delete nothing")
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    unequal = "also models that would come back with other bits: train.determinism off, or made on another device"
    parser.add_argument("--unequal", action="store_true", help=unequal)
    shared = "tidy DVC's cache even if it is outside of this repository: what others have there goes, too"
    parser.add_argument("--shared-cache", action="store_true", help=shared)
    arguments = parser.parse_args()
    if arguments.keep < 1:
        parser.error("--keep: at least 1, which is best")
    if not (arguments.dry_run or arguments.yes or sys.stdin.isatty()):
        raise InputError("there is no terminal to ask on: --yes deletes without asking, --dry-run shows what would go")
    house = House(arguments.keep, arguments.unequal, arguments.shared_cache)
    pieces = house.pieces()
    for line in house.remarks():
        say(line)
    if not pieces:
        say("there is nothing to delete")
        return
    for line in table(pieces):
        say(line)
    if arguments.dry_run:
        return
    if not arguments.yes:
        if not is_wanted():
            say("nothing was deleted")
            return
        # Meanwhile there may be more that is needed.
        again = House(arguments.keep, arguments.unequal, arguments.shared_cache).pieces()
        if [(piece.kind, piece.what) for piece in again] != [(piece.kind, piece.what) for piece in pieces]:
            raise InputError("something has changed since the list was made: run this again")
        pieces = again
    remove(pieces)


def is_wanted() -> bool:
    """Ask, and return whether the answer is yes."""
    try:
        return input("delete these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def remove(pieces: list[Piece]) -> None:
    """Remove pieces, and say what was done.

    Raises InputError if somebody is at work here, or if some could not be removed, once all have been tried.
    """
    check_idle()
    removed = failed = 0
    for piece in pieces:
        try:
            piece.remove()
            removed += piece.size
        except (InputError, OSError) as error:
            warn(f"{piece.kind} {piece.what}: {error}")
            failed += 1
    say(f"deleted: {shown(removed)}; python -m tools.rebuild RUN brings back what belongs to a run")
    if failed:
        raise InputError(f"{failed} of {len(pieces)} could not be deleted, see above")


class House:
    """What there is in MLflow, in DVC's cache and on this disk, and what of it can go."""

    def __init__(self, keep: int, unequal: bool, shared_cache: bool) -> None:
        """Raises InputError if somebody is at work here, or MLflow cannot be reached."""
        check_idle()
        self._keep, self._shared_cache, self._store = keep, shared_cache, Runs()
        self._needed = Needed(self._store, keep, unequal)
        self._why = {run.info.run_id: self._needed.why(run) for run in self._needed.runs}
        with self._store.reading():
            finished = self._store.store.search(having=[TRAINING_TAG], status="FINISHED")
        weights = {run.data.tags.get(WEIGHTS_TAG, "") for run in self._needed.runs}
        self._leftovers = Leftovers(weights, {run.data.tags[TRAINING_TAG] for run in finished})
        self._dropped, self._without_run = set[str](), list[str]()
        self._sort_experiments()
        self._cache_stays = ""

    def pieces(self) -> list[Piece]:
        """Return what can go. DVC's cache comes first, since what it is to keep was just looked up."""
        others = [*self._models(), *self._leftovers.pieces()]
        return [*self._cache(), *others]

    def remarks(self) -> Iterator[str]:
        """Yield what else is to be known, after `pieces`: what is kept for what, and what waits."""
        reasons = defaultdict(list)
        for run in self._needed.runs:
            if why := self._why[run.info.run_id]:
                reasons[why].append(named(run))
        for why, runs in reasons.items():
            yield f"kept: {len(runs):,} {why}: {listed(runs, 3)}"
        if self._without_run:
            told = "experiments without a run in MLflow, which python -m tools.sync makes"
            yield f"kept: {len(self._without_run):,} {told}: {listed(self._without_run, 3)}"
        for line in self._leftovers.waiting:
            yield f"kept: {line}"
        if self._cache_stays:
            yield self._cache_stays
        if deleted := [named(run) for run in self._needed.deleted]:
            told = "that were deleted in MLflow, whose files mlflow gc deletes for good"
            yield f"kept: {len(deleted):,} {told}: {listed(deleted, 3)}"

    def _sort_experiments(self) -> None:
        runs = defaultdict(list)
        for run in [*self._needed.runs, *self._needed.deleted]:
            tags = run.data.tags
            runs[tags.get("dvc.exp_name"), tags.get("dvc.baseline_rev")].append(run)
        for experiment in recorded.experiments():
            own = runs[experiment.name, experiment.baseline]
            if not own:
                self._without_run.append(experiment.name)
            # Those that were deleted in MLflow need nothing.
            elif not any(self._why.get(run.info.run_id) for run in own):
                self._dropped.add(experiment.commit)

    def _cache(self) -> Iterator[Piece]:
        runs = [*self._needed.runs, *self._needed.deleted]
        commits = {run.data.tags.get("mlflow.source.git.commit", "") for run in runs} - {""}
        patches = [self._needed.text(run, PATCH) for run in runs if run.data.tags.get("git.dirty") != "false"]
        try:
            if self._leftovers.has_results:
                raise InputError("a copy of a sweep holds results that may need it, see above")
            if not self._shared_cache:
                cache.check_own()
            yield from cache.unneeded(self._dropped, sorted(commits), patches)
        except InputError as error:
            self._cache_stays = f"DVC's cache is left alone: {error}"

    def _models(self) -> Iterator[Piece]:
        for run in self._needed.runs:
            if not self._why[run.info.run_id]:
                yield from models.unneeded(self._store, run, self._needed.digest(run), self._keep)


if __name__ == "__main__":
    cli.run(main)

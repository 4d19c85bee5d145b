"""Make MLflow agree with DVC: every result that DVC records gets its run, or what its run lacks.

    python -m tools.sync
    python -m tools.sync --dry-run
    python -m tools.sync seed-1 HEAD workspace

First come the journals of trainings and evaluations that MLflow has not followed to their end, since it could not be
reached: their runs get all that they would have had, with their times. Then come the results.

These are those of all DVC experiments, of the commits of HEAD and of all branches, and of the workspace. One lacks
its run where the store could not be reached, where DVC took it from its cache, or where it was pulled from others.
Files and models that a run has lost are put back. What only a run knows is not made up: how long it took, and on what
machine. Doing it twice changes nothing. A run that somebody deleted in MLflow comes back with --deleted only. Runs
whose process was killed are ended.

It ends with 1 where a result failed, or one that was asked for by name was skipped. Other results that cannot be used
are skipped, which is no failure. What tools.tidy has removed stays so: tools.rebuild brings it back.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.text import say
from stages.tracking.artifacts import lacking, names_of
from stages.tracking.journal import DamagedError
from stages.tracking.params import as_logged
from stages.tracking.replay import BusyError, Pending, delivered, pending
from stages.tracking.result import EVALUATION_TAG, TIDIED_WEIGHTS_TAG, WEIGHTS_TAG
from stages.tracking.run import close, found, has_evaluation, lacks_evaluation, left_running, of_params
from stages.tracking.store import Store
from tools import facts, recorded
from tools.commits import contents, is_whole
from tools.dvclock import digests_in, read_params, weights_digest
from tools.facts import Held
from tools.recorded import RecordedResult
from tools.tidy.busy import entering

BUSY_SECONDS = 60.0  # that another process is waited for, which brings a journal

if TYPE_CHECKING:
    from mlflow.entities import Run

    from stages.tracking.writer import RunWriter


class Outcome(StrEnum):
    """What became of a result; the values are what is printed."""

    PRESENT = "in place"
    CREATED = "created"
    COMPLETED = "completed"
    RESTORED = "brought back"
    BROUGHT = "brought"  # a journal
    LEFT = "left"
    DELETED = "deleted in MLflow and left so"
    SKIPPED = "skipped"  # the result cannot be used
    FAILED = "failed"  # for another reason than the result or the store
    # Of a dry run:
    WOULD_BE_PRESENT = "would be in place"
    WOULD_BE_CREATED = "would be created"
    WOULD_BE_COMPLETED = "would be completed"
    WOULD_BE_RESTORED = "would be brought back"
    WOULD_BE_BROUGHT = "would be brought"


def main() -> None:
    parser = cli.parser("tools.sync", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these: experiment, git revision, or workspace")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--deleted", action="store_true", help="bring back runs that were deleted in MLflow, too")
    arguments = parser.parse_args()
    if not arguments.dry_run:
        with entering():  # tools.tidy looks for processes
            pass
    results = recorded.named(arguments.names) if arguments.names else recorded.everything()
    sync = Sync(Store.from_environment(), arguments.dry_run, arguments.deleted)

    outcomes: Counter[Outcome] = Counter()
    for name, outcome, detail in sync.journals():
        say(f"journal of {name}: {outcome}{detail}")
        outcomes[outcome] += outcome != Outcome.LEFT
    for result in results:
        outcome, detail = sync.outcome(result)
        say(f"{result.name}: {outcome}{detail}")
        outcomes[outcome] += 1
    for line in sync.close():
        say(line)
    say("in all: " + ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    failed, skipped = outcomes[Outcome.FAILED], outcomes[Outcome.SKIPPED]
    # What was asked for by name is expected to be there.
    if failed or (arguments.names and skipped):
        counts = [f"{failed} failed"] * bool(failed) + [f"{skipped} skipped"] * bool(skipped)
        raise InputError(f"{' and '.join(counts)} of {outcomes.total()}, see above")


class Sync:
    """Gives results their runs in a store."""

    def __init__(self, store: Store, dry_run: bool, deleted: bool = False) -> None:
        """Connect to the store; `deleted` runs are to be brought back. Raises InputError if it fails."""
        self._store, self._dry_run, self._deleted = store, dry_run, deleted
        # What a dry run would have made, and what it would have completed.
        self._planned: list[tuple[dict[str, str], dict[str, str]]] = []
        self._filled: set[str] = set()
        self._whole: dict[str, bool] = {}  # outputs by their digests: whether DVC's cache has all of them
        with reaching(store):
            if not dry_run:
                store.client()
            self._exists = store.exists()

    def journals(self) -> Iterator[tuple[str, Outcome, str]]:
        """Bring the journals that wait; yield of each whose it is, and what was done, with details.

        Raises InputError if the store fails.
        """
        for journal in pending():
            if not journal.is_of(self._store):
                where = f"it is for MLflow at {journal.store}, experiment {journal.experiment}"
                yield journal.name, Outcome.LEFT, f", {where}"
            elif journal.is_going_on:
                yield journal.name, Outcome.LEFT, f", its {journal.what} goes on"
            elif self._dry_run:
                if journal.what:
                    yield journal.name, Outcome.WOULD_BE_BROUGHT, ""
            else:
                with self._lock():
                    brought = self._bring(journal)
                if journal.what:
                    yield journal.name, *brought

    def _bring(self, journal: Pending) -> tuple[Outcome, str]:
        deadline = time.monotonic() + BUSY_SECONDS
        try:
            while True:
                try:
                    run_id = delivered(self._store, journal.folder)
                    return Outcome.BROUGHT, f", run {run_id}" * bool(run_id)
                except BusyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
        except DamagedError as error:
            return Outcome.SKIPPED, f", {error}"  # DVC has the result
        except Exception as error:
            with reaching(self._store):
                self._store.exists()
            return Outcome.FAILED, f", {self._store.why(error)}"

    def outcome(self, result: RecordedResult) -> tuple[Outcome, str]:
        """Give a result its run; return what was done, and details of it. Raises InputError if the store fails."""
        try:
            if self._is_in_place(result):
                return Outcome.PRESENT, ""
            with self._lock():
                return self._give(result)
        except InputError as error:
            return Outcome.SKIPPED, f", {error}"
        except Exception as error:
            # What is wrong with one result is no harm to the others, unless it is the store.
            with reaching(self._store):
                self._store.exists()
            return Outcome.FAILED, f", {self._store.why(error)}"

    def _is_in_place(self, result: RecordedResult) -> bool:
        """Return whether a run has all of a result that was read once: its commit need not be read again.

        Nor need that be there any more which tools.tidy has removed.
        """
        if not (self._exists and result.commit):
            return False
        if not (held := facts.of(result.commit).held):
            return bool(self._tidied) and self._is_tidied(result)
        runs = of_params(self._runs.get(held.digests[WEIGHTS_TAG], []), held.params)
        run = evaluated(result, held, runs)
        return run is not None and not lacking(self._store.client(), run, held.artifacts)

    @cached_property
    def _runs(self) -> "dict[str, list[Run]]":
        """The evaluated runs that there are as this begins, by the digests of their weights, the latest first."""
        runs = defaultdict(list)
        for run in self._store.search(having=[EVALUATION_TAG]):
            runs[run.data.tags.get(WEIGHTS_TAG, "")].append(run)
        return runs

    @cached_property
    def _tidied(self) -> "dict[str, list[Run]]":
        """The runs whose weights tools.tidy has removed, by the digests that dvc.lock has of these."""
        tidied = defaultdict(list)
        for run in self._store.search(having=[TIDIED_WEIGHTS_TAG]):
            tidied[run.data.tags[TIDIED_WEIGHTS_TAG]].append(run)
        return tidied

    def _is_tidied(self, result: RecordedResult) -> bool:
        """Return whether a run of a result was tidied, and DVC's cache has lost outputs of it, too."""
        lock = contents([f"{result.commit}:./dvc.lock"])
        text = next(iter(lock.values()), b"").decode(errors="replace")
        if not any(is_of(result, run) for run in self._tidied.get(weights_digest(text), [])):
            return False
        made = {digest for outs in digests_in(text, "outs").values() for digest in outs.values() if digest}
        self._whole |= {digest: is_whole(digest) for digest in made - self._whole.keys()}
        return not all(self._whole[digest] for digest in made)

    def _give(self, result: RecordedResult) -> tuple[Outcome, str]:
        with result.files() as files:
            params, digests = read_params(files.root / "params.yaml"), files.digests
            held = Held(as_logged(params), digests, names_of(files))
            if result.commit:
                facts.add(result.commit, held=held)
            runs = found(self._store, held.params, digests) if self._exists else []
            run = evaluated(result, held, runs)
            gone = lacking(self._store.client(), run, held.artifacts) if run else []
            if run and not gone:
                return Outcome.PRESENT, ""
            from stages.tracking.writer import RunWriter  # with torch, which what is in place need not wait for

            writer = RunWriter(self._store, params, result.provenance())
            if run:
                present = run.info.run_id
                lacked = f", run {present} lacked {listed(gone, 3)}"
                if not self._dry_run:
                    writer.put_back(present, files)
                    return Outcome.COMPLETED, lacked
                # The experiment and the commit that holds it have one run.
                done, self._filled = present in self._filled, self._filled | {present}
                return (Outcome.WOULD_BE_PRESENT, "") if done else (Outcome.WOULD_BE_COMPLETED, lacked)
            run_id = next((run.info.run_id for run in runs if is_of(result, run) and lacks_evaluation(run)), "")
            if not run_id and self._exists:
                run_id = writer.begun(files)
            if not run_id and (deleted := self._deleted_run(writer, result, digests)):
                if not self._deleted:
                    return Outcome.DELETED, f", run {deleted}; --deleted brings it back"
                if not self._dry_run:
                    self._store.client().restore_run(deleted)
                return Outcome.WOULD_BE_RESTORED if self._dry_run else Outcome.RESTORED, f", run {deleted}"
            if not self._dry_run:
                outcome = Outcome.COMPLETED if run_id else Outcome.CREATED
                return outcome, f", run {writer.complete(files, run_id)}"
            planned = digests, writer.params
            if not result.experiment and planned in self._planned:
                return Outcome.WOULD_BE_PRESENT, ""
            self._planned.append(planned)
            return (Outcome.WOULD_BE_COMPLETED, f", run {run_id}") if run_id else (Outcome.WOULD_BE_CREATED, "")

    def _deleted_run(self, writer: "RunWriter", result: RecordedResult, digests: dict[str, str]) -> str:
        """Return the id of a run of this result that somebody has deleted, "" if there is none."""
        runs = found(self._store, writer.params, digests, deleted=True) if self._exists else []
        return next((run.info.run_id for run in runs if is_of(result, run) and has_evaluation(run, digests)), "")

    def close(self) -> list[str]:
        """End the runs that say they are running and whose process is gone; return a line about each of them."""
        lines = []
        with self._lock(), reaching(self._store):
            for run in left_running(self._store) if self._exists else []:
                if self._dry_run or close(self._store, run):
                    ended = "would be ended" if self._dry_run else "ended"
                    lines.append(f"run {run.info.run_id} ({run.info.run_name}): {ended} as KILLED, its process is gone")
        return lines

    def _lock(self) -> AbstractContextManager[object]:
        """Return what one process at a time holds in which results get their runs; a dry run needs none.

        It is beside a SQLite file, so that it holds for all clones that use it, else in this clone. Where that folder
        is read-only it is of no use: SQLite, too, writes files beside its own, so nobody can write.
        """
        database = self._store.database
        lock = Path(f"{database}.sync.lock" if database else ".dvc/tmp/mlflow.sync.lock")
        if self._dry_run or (database and not os.access(lock.parent, os.W_OK)):
            return nullcontext()
        return FileLock(lock, mode=0o600)


def is_of(result: RecordedResult, run: "Run") -> bool:
    """Return whether a run is one of a result: an experiment's is its own, any will do for a commit or the workspace.

    These may hold what an experiment made. Experiments from different commits may have one name.
    """
    tags = run.data.tags
    own = tags.get("dvc.exp_name") == result.experiment and tags.get("dvc.baseline_rev") == result.baseline
    return own or not result.experiment


def evaluated(result: RecordedResult, held: Held, runs: "Iterable[Run]") -> "Run | None":
    """Return the first of these runs that is one of a result and has its evaluation."""
    return next((run for run in runs if is_of(result, run) and has_evaluation(run, held.digests)), None)


@contextmanager
def reaching(store: Store) -> Iterator[None]:
    """Raise InputError for whatever is wrong with the store."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"MLflow at {store.name} cannot be used: {store.why(error)}\n"
            "Run this again once it can be; what has its run by now will be left as it is."
        ) from error


if __name__ == "__main__":
    cli.run(main)

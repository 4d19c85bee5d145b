"""Make MLflow agree with DVC: every result that DVC records gets its run, or what its run lacks.

    python -m tools.sync
    python -m tools.sync --dry-run
    python -m tools.sync seed-1 HEAD workspace

Results are those of all DVC experiments, of the commits of HEAD and of all branches, and of the workspace. One lacks
its run where the store could not be reached, where DVC took it from its cache, or where it was pulled from others.
Files and models that a run has lost are put back. What only a run knows is not made up: how long it took, and on what
machine. Doing it twice changes nothing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.params import flattened, load_params
from stages.base.text import say
from stages.tracking.store import Store
from stages.tracking.writer import RunWriter, has_evaluation, lacks_evaluation
from tools import recorded
from tools.recorded import RecordedResult


class Outcome(StrEnum):
    """What became of a result; the values are what is printed."""

    PRESENT = "in place"
    CREATED = "created"
    COMPLETED = "completed"
    SKIPPED = "skipped"  # the result cannot be used
    FAILED = "failed"  # for another reason than the result or the store
    # Of a dry run:
    WOULD_BE_PRESENT = "would be in place"
    WOULD_BE_CREATED = "would be created"
    WOULD_BE_COMPLETED = "would be completed"


def main() -> None:
    parser = cli.parser("tools.sync", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these: experiment, git revision, or workspace")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    arguments = parser.parse_args()
    results = recorded.named(arguments.names) if arguments.names else recorded.everything()
    sync = Sync(Store.from_environment(), arguments.dry_run)

    outcomes: Counter[Outcome] = Counter()
    for result in results:
        outcome, detail = sync.outcome(result)
        say(f"{result.name}: {outcome}{detail}")
        outcomes[outcome] += 1
    say("in all: " + ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    failed, skipped = outcomes[Outcome.FAILED], outcomes[Outcome.SKIPPED]
    # What was asked for by name is expected to be there.
    if failed or (arguments.names and skipped):
        raise InputError(f"{failed + skipped} of {len(results)} could not be given a run, see above")


class Sync:
    """Gives results their runs in a store."""

    def __init__(self, store: Store, dry_run: bool) -> None:
        """Connect to the store. Raises InputError if it fails."""
        self._store, self._dry_run = store, dry_run
        self._planned: list[tuple[dict[str, str], dict[str, str]]] = []  # what a dry run would have made
        with reaching(store):
            if not dry_run:
                store.client()
            self._exists = store.exists()

    def outcome(self, result: RecordedResult) -> tuple[Outcome, str]:
        """Give a result its run; return what was done, and details of it. Raises InputError if the store fails."""
        try:
            return self._give(result)
        except InputError as error:
            return Outcome.SKIPPED, f", {error}"
        except Exception as error:
            # What is wrong with one result is no harm to the others, unless it is the store.
            with reaching(self._store):
                self._store.exists()
            return Outcome.FAILED, f", {self._store.why(error)}"

    def _give(self, result: RecordedResult) -> tuple[Outcome, str]:
        with result.files() as files:
            params = read_params(files.root / "params.yaml")
            writer = RunWriter(self._store, params, result.provenance())
            digests = files.digests
            runs = writer.found(digests) if self._exists else []
            # An experiment's run is its own. Any will do for a commit or the workspace, which may hold an experiment's.
            ours = [run for run in runs if result.experiment in ("", run.data.tags.get("dvc.exp_name"))]
            if present := next((run.info.run_id for run in ours if has_evaluation(run, digests)), ""):
                gone = writer.lacking(present, files)
                if not gone:
                    return Outcome.PRESENT, ""
                if not self._dry_run:
                    writer.put_back(present, files)
                outcome = Outcome.WOULD_BE_COMPLETED if self._dry_run else Outcome.COMPLETED
                return outcome, f", run {present} lacked {listed(gone, 3)}"
            trained = next((run.info.run_id for run in ours if lacks_evaluation(run)), "")
            if not self._dry_run:
                outcome = Outcome.COMPLETED if trained else Outcome.CREATED
                return outcome, f", run {writer.complete(files, trained)}"
            planned = digests, writer.params
            if not result.experiment and planned in self._planned:
                return Outcome.WOULD_BE_PRESENT, ""
            self._planned.append(planned)
            return (Outcome.WOULD_BE_COMPLETED, f", run {trained}") if trained else (Outcome.WOULD_BE_CREATED, "")


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


def read_params(path: Path) -> dict[str, Any]:
    """Return the params of any commit by their dotted names, as they stand there if they are not today's."""
    try:
        return load_params(path).flat()
    except InputError:
        return flattened(recorded.as_yaml(path.read_bytes()))


if __name__ == "__main__":
    cli.run(main)

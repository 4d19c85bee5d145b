"""Make MLflow agree with DVC: every result that DVC records gets its run, or what its run lacks.

    python -m tools.sync
    python -m tools.sync --dry-run
    python -m tools.sync seed-1 HEAD workspace

Results are those of all DVC experiments, of the commits of HEAD and of all branches, and of the workspace. One lacks
its run where the store could not be reached, where DVC took it from its cache, or where it was pulled from others. What
only a run knows is not made up: how long it took, and on what machine. Doing it twice changes nothing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.base import cli
from stages.base.errors import InputError
from stages.base.params import flattened, load_params
from stages.tracking.result import EVALUATION_TAG, WEIGHTS_TAG
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker, lacks_evaluation
from tools import recorded
from tools.recorded import RecordedResult

PRESENT, SKIPPED, FAILED = "in place", "skipped", "failed"


def main() -> None:
    parser = cli.parser("tools.sync", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these: experiment, git revision, or workspace")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    arguments = parser.parse_args()
    results = recorded.named(arguments.names) if arguments.names else recorded.everything()
    sync = Sync(Store.from_environment(), arguments.dry_run)

    outcomes: Counter[str] = Counter()
    for result in results:
        outcome, detail = sync.outcome(result)
        print(f"{result.name}: {outcome}{detail}", flush=True)
        outcomes[outcome] += 1
    print("in all:", ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    # What was asked for by name is expected to be there.
    if outcomes[FAILED] or (arguments.names and outcomes[SKIPPED]):
        raise InputError(
            f"{outcomes[FAILED] + outcomes[SKIPPED]} of {len(results)} could not be given a run, see above"
        )


class Sync:
    """Gives results their runs in a store. Raises InputError if the store fails."""

    def __init__(self, store: Store, dry_run: bool) -> None:
        self._store, self._dry_run = store, dry_run
        self._planned: list[tuple[dict[str, str], dict[str, str]]] = []  # what a dry run would have made
        with reaching(store):
            if not dry_run:
                store.client()
            self._exists = store.exists()

    def outcome(self, result: RecordedResult) -> tuple[str, str]:
        """Give a result its run; return what was done, and details of it."""
        try:
            return self._give(result)
        except InputError as error:
            return SKIPPED, f", {error}"
        except Exception as error:
            # What is wrong with one result is no harm to the others, unless it is the store.
            with reaching(self._store):
                self._store.exists()
            return FAILED, f", {type(error).__name__}: {error}"

    def _give(self, result: RecordedResult) -> tuple[str, str]:
        with result.files() as record:
            values = read_params(record.root / "params.yaml")
            tracker = Tracker(self._store, values, result.origin(), sparing=False)
            digests = record.digests()
            runs = tracker.found(digests[WEIGHTS_TAG]) if self._exists else []
            # An experiment's run is its own. Any will do for a commit or the workspace, which may hold an experiment's.
            ours = [run for run in runs if result.experiment in ("", run.data.tags.get("dvc.exp_name"))]
            if any(run.data.tags.get(EVALUATION_TAG) == digests[EVALUATION_TAG] for run in ours):
                return PRESENT, ""
            waiting = next((run.info.run_id for run in ours if lacks_evaluation(run)), "")
            if not self._dry_run:
                return "completed" if waiting else "created", f", run {tracker.complete(record, waiting)}"
            made = digests, tracker.params
            if not result.experiment and made in self._planned:
                return "would be in place", ""
            self._planned.append(made)
            return ("would be completed", f", run {waiting}") if waiting else ("would be created", "")


@contextmanager
def reaching(store: Store) -> Iterator[None]:
    """Raise InputError for whatever is wrong with the store."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"MLflow at {store.uri} cannot be used: {type(error).__name__}: {error}\n"
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

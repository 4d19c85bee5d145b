"""Runs a training of MLflow's store again, in a folder of its own, and says whether the result is the same.

    python -m tools.rebuild seed-1
    python -m tools.rebuild best 93c824800cbf4f12b0995cdb5167a671
    python -m tools.rebuild --all

A run is named by its id, by its name (which is the DVC experiment's), or as `best`. Its commit, patch, params and
settings are put into an empty folder, with an empty cache of DVC, and its three stages run there. Of data, weights,
history, metrics and predictions each is equal, bit for bit, or it is said by how much it differs, and why that may be.
The exit status is 0 only where all is equal. With --venv the stages run with the packages that the run was made with,
installed for it; without, those that are installed now.

What tools.tidy has removed of a run that is named comes back, if prepared data and weights are equal: weights and model
into MLflow, the outputs into DVC's cache. It is trained on the prepared data of that cache, and they are prepared anew
only if it has not all of them. --all compares alone.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.locks import locked
from stages.base.text import say
from stages.tracking.result import WEIGHTS
from tools.dvclock import as_yaml, files_of
from tools.rebuild.again import bring, bring_back, bring_prepared, folder_of, remove_left, restored, run_stages
from tools.rebuild.parts import PREPARED, Part, of_evaluation, of_training, reasons
from tools.rebuild.record import Record
from tools.runs import EvaluatedRun, Runs, named
from tools.tidy.busy import entering

if TYPE_CHECKING:
    from mlflow.entities import Run

EQUAL = "all equal, bit for bit"


def main() -> None:
    parser = cli.parser("tools.rebuild", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run id, run name, or best")
    parser.add_argument("--all", action="store_true", help="every evaluated run of the store, and a table of them")
    parser.add_argument("--venv", action="store_true", help="install the packages that the run was made with")
    arguments = parser.parse_args()
    if bool(arguments.runs) == arguments.all:
        parser.error("name runs, or give --all")
    store = Runs()
    found = store.evaluated() if arguments.all else [store.look_up(name)[0] for name in arguments.runs]
    outcomes: dict[str, str] = {}
    for name, run in {named(run): run for run in found}.items():
        say(f"{name}:")
        outcomes[name] = outcome = _outcome(store, run, arguments.venv, brings_back=not arguments.all)
        say(f"  {outcome}")
    if arguments.all:
        width = max(map(len, outcomes), default=0)
        say("\n".join(["", *(f"{name:{width}}  {outcome}" for name, outcome in outcomes.items())]))
    if failed := [name for name, outcome in outcomes.items() if outcome != EQUAL]:
        raise InputError(f"{len(failed)} of {len(outcomes)} are not as they were: {listed(failed)}")


def _outcome(store: Runs, run: "Run", venv: bool, brings_back: bool) -> str:
    """Rebuild a run, say what is equal and what not, and return that in a line."""
    try:
        parts, reason = rebuild(store, store.read(run), venv, brings_back)
    except InputError as error:
        return f"cannot be rebuilt: {error}"
    for part in parts:
        say(f"  {part.name}: {part.difference or 'equal, bit for bit'}")
    different = [part.name for part in parts if part.difference]
    if different and reason:
        say(f"  others than for the run, so a likely reason: {reason}")
    return f"different: {', '.join(different)}" if different else EQUAL


def rebuild(store: Runs, run: EvaluatedRun, venv: bool = False, brings_back: bool = False) -> tuple[list[Part], str]:
    """Run a run's stages again; return what they made beside what it has, and what may be why it is another.

    What tools.tidy has removed of the run comes back if that is wanted, and data and weights are equal. Prepared data
    are those of DVC's cache then, if it has them: other packages may prepare otherwise.
    Raises InputError if something that it needs is missing, or a stage fails.
    """
    place = folder_of(os.environ)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        with entering():  # tools.tidy looks for locks
            remove_left(place)
            folder = Path(stack.enter_context(TemporaryDirectory(dir=place)))
            stack.enter_context(locked(folder))
        record = Record(store, run, folder / "record")
        project = restored(record, folder / "repository")
        brings_back = brings_back and record.is_tidied
        stages = ["train"] if brings_back and bring_prepared(record, project) else ["prepare", "train"]
        for path in record.inputs(stages):
            bring(path, project)
        python = record.venv(folder / "venv") if venv else Path(sys.executable)
        if not venv and (others := record.other_packages()):
            say(f"  packages that are others than the run's: {others}")
        # Each dvc repro takes seconds to begin. What is to be brought back must be there before it is evaluated.
        run_stages(record, project, python, *stages, *([] if brings_back else ["evaluate"]))
        files = files_of(as_yaml((project / "dvc.yaml").read_bytes()), project)
        parts = list(of_training(record, files))
        if brings_back and not any(part.difference for part in parts if part.name in (PREPARED, WEIGHTS)):
            for what in bring_back(store, record, files, *stages):
                say(f"  there again: {what}")
        if brings_back:
            run_stages(record, project, python, "evaluate")
        return [*parts, *of_evaluation(run, files)], reasons(record)


if __name__ == "__main__":
    cli.run(main)

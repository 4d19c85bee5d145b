"""What MLflow keeps of runs that are not needed: weights and models go, the rest of the run stays."""

from collections.abc import Iterator, Sequence
from functools import partial
from time import strftime
from typing import TYPE_CHECKING

from stages.tracking.artifacts import Heavy, heavy
from stages.tracking.result import TIDIED_TAG, TIDIED_WEIGHTS_TAG
from tools.runs import Runs, named
from tools.tidy.piece import Piece

if TYPE_CHECKING:
    from mlflow.entities import Run


def unneeded(store: Runs, run: "Run", digest: str, keep: int) -> Iterator[Piece]:
    """Yield weights and models of a run that is not needed; `digest` is what dvc.lock has of these weights."""
    with store.reading():
        there = heavy(store.client, run)
    if there:
        accuracy = run.data.metrics["best/valid_accuracy"]
        why = f"validation accuracy {accuracy:.4f}, not of the {keep} best"
        remove = partial(_remove, store, run.info.run_id, digest, there)
        yield Piece("model", named(run), why, sum(each.size for each in there), remove)


def _remove(store: Runs, run_id: str, digest: str, there: Sequence[Heavy]) -> None:
    """Remove weights and models of a run. It says so first: tools.sync would bring back what a run has lost.

    Raises InputError for whatever goes wrong.
    """
    day = strftime("%Y-%m-%d")
    with store.reading():
        store.client.set_tag(run_id, TIDIED_WEIGHTS_TAG, digest)
        store.client.set_tag(run_id, TIDIED_TAG, day)
        for each in there:
            if each.model_id:
                store.client.set_logged_model_tags(each.model_id, {TIDIED_TAG: day})
            each.remove()

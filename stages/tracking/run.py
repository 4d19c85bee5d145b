"""A run in the store: one that is being written, and what one says of its state."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages.tracking.datasets import dataset_input
from stages.tracking.params import given, values
from stages.tracking.provenance import PROCESS_TAG, has_ended, is_alive
from stages.tracking.result import (
    EVALUATED_BY_TAG,
    EVALUATION_TAG,
    JOURNAL_TAG,
    NOTE_TAG,
    PATCH,
    TRAINING_TAG,
    WEIGHTS_TAG,
)
from stages.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run


# What an attempt before may have been, and the one that goes on is not.
GONE_TAGS = ("dvc.exp_name", "dvc.baseline_rev", "sweep", "git.untracked", NOTE_TAG)


@dataclass(frozen=True)
class Start:
    """What is known of a run at its start."""

    tags: dict[str, str]
    params: dict[str, str]  # as MLflow keeps them
    datasets: list[dict[str, str]]
    time: int  # ms since 1970
    files: dict[str, Path] = field(default_factory=dict)  # artifacts by their names


class ActiveRun:
    """A run that is being written. Its methods raise what goes wrong with the store."""

    def __init__(self, client: "MlflowClient", run_id: str, logged: Collection[tuple[str, int]] = ()) -> None:
        """What has been `logged`, a name at a step each, is not logged again; more can be added."""
        self.id, self._client, self.logged = run_id, client, set(logged)
        self._collected: list[Metric] = []
        self.has_ended = False  # as it should: that stays so

    def log(self, metrics: dict[str, float], step: int, time: int, model_id: str | None = None) -> None:
        """Collect `metrics` at `step`, of this time in ms since 1970, for `flush`."""
        from mlflow.entities import Metric

        for name, value in metrics.items():
            if (name, step) not in self.logged:
                self.logged.add((name, step))
                self._collected.append(Metric(name, value, time, step, model_id))

    def flush(self) -> None:
        """Write what was collected: to write one takes longer than a step of a training."""
        while self._collected:
            batch = self._collected[:1000]  # as many as one call takes
            self._client.log_batch(self.id, metrics=batch)
            del self._collected[: len(batch)]

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def describe(self, start: Start) -> None:
        """Log what is known at the start, but for the tags. Doing it twice changes nothing."""
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in start.params.items()]
        for first in range(0, len(params), 100):  # as many as one call takes
            self._client.log_batch(self.id, params=params[first : first + 100])
        self._client.log_inputs(self.id, [dataset_input(record) for record in start.datasets])
        for path in start.files.values():
            self._client.log_artifact(self.id, str(path))

    def end(self, status: str, time: int, note: str = "") -> None:
        """Write what was collected, and end with this status; `note` is shown as the run's description."""
        self.flush()
        if self.has_ended:
            return
        if note:
            self.tag({NOTE_TAG: note})
        self._client.set_terminated(self.id, status, time)


def run_name(tags: Mapping[str, str]) -> str:
    """Return what a run with these tags is called: as DVC's experiment, or its commit."""
    return tags.get("dvc.exp_name") or tags.get("mlflow.source.git.commit", "no commit")[:9]


def started(store: Store, start: Start) -> ActiveRun:
    """Return a run that has all of its start: a new one, or the one that is there.

    That is one of the same journal, or of an attempt before at the same training.
    """
    client = store.client()
    if before := _same(store, start) or _attempted(store, start):
        run = _taken_up(client, before, start)
    else:
        run = ActiveRun(client, store.create_run(run_name(start.tags), start.tags, start.time).info.run_id)
    if not run.has_ended:
        run.describe(start)
    return run


def delete_others(store: Store, journal: str, run_id: str) -> None:
    """Delete runs of a journal but this one: asked for, and made when the answer could not arrive any more."""
    for run in store.search(tags={JOURNAL_TAG: journal}):
        if run.info.run_id != run_id:
            store.client().delete_run(run.info.run_id)


def points_of(client: "MlflowClient", run: "Run") -> dict[tuple[str, int], float]:
    """Return the values of a run's metrics by their names and steps."""
    read = client.get_metric_history
    return {(name, point.step): point.value for name in run.data.metrics for point in read(run.info.run_id, name)}


def is_abandoned(run: "Run") -> bool:
    """Return whether what wrote a run came to no end of it: it was killed, or the store failed, not the training."""
    process = run.data.tags.get(PROCESS_TAG, "")
    if run.info.status == "RUNNING":
        return has_ended(process)
    # One that came to an end has a note of why. A reader may have ended one that goes on by now.
    return run.info.status in ("FAILED", "KILLED") and NOTE_TAG not in run.data.tags and not is_alive(process)


def found(store: Store, params: Mapping[str, str], digests: Mapping[str, str], deleted: bool = False) -> "list[Run]":
    """Return the runs of the weights with this digest and of these params, the latest first."""
    return of_params(store.search(tags={WEIGHTS_TAG: digests[WEIGHTS_TAG]}, deleted=deleted), params)


def of_params(runs: "Iterable[Run]", params: Mapping[str, str]) -> "list[Run]":
    """Return those of the runs that have these params."""
    return [run for run in runs if values(given(run)) == values(params)]


def lacks_evaluation(run: "Run") -> bool:
    """Return whether a run of known weights was not evaluated yet, and is at no one's hands."""
    return (run.info.status == "FINISHED" or is_abandoned(run)) and EVALUATION_TAG not in run.data.tags


def is_of_journal(run: "Run", journal: str | None) -> bool:
    """Return whether a run was begun by what a journal holds."""
    tags = run.data.tags
    return journal in (tags.get(JOURNAL_TAG, ""), tags.get(EVALUATED_BY_TAG, "")) and EVALUATION_TAG not in tags


def has_evaluation(run: "Run", digests: dict[str, str]) -> bool:
    """Return whether a run holds the evaluation with this digest."""
    return bool(run.data.tags.get(EVALUATION_TAG) == digests[EVALUATION_TAG])


def left_running(store: Store) -> "list[Run]":
    """Return the runs that say they are running and whose process is gone."""
    return [run for run in store.search(status="RUNNING") if is_abandoned(run)]


def close(store: Store, run: "Run") -> bool:
    """End a run that was left running, if it still is; return whether it was. Its journal may be brought right now."""
    now = store.client().get_run(run.info.run_id)
    is_left = now.info.status == "RUNNING" and is_abandoned(now)
    if is_left:
        store.client().set_terminated(run.info.run_id, "KILLED")
    return is_left


def _same(store: Store, start: Start) -> "Run | None":
    """Return the run of this journal, the first of several."""
    journal = start.tags.get(JOURNAL_TAG, "")
    runs = store.search(tags={JOURNAL_TAG: journal}) if journal else []
    return runs[-1] if runs else None


def _attempted(store: Store, start: Start) -> "Run | None":
    """Return the latest run of this training. Its process is gone, and may have come to its end, or near it.

    Params on which no result of a training depends may be others now; then it is another run.
    """
    training = start.tags.get(TRAINING_TAG, "")
    runs = store.search(tags={TRAINING_TAG: training}) if training else []
    return next((run for run in runs if run.data.params.items() <= start.params.items()), None)


def _taken_up(client: "MlflowClient", before: "Run", start: Start) -> ActiveRun:
    """Let a run go on as what it is now, of another experiment or commit perhaps. One that has ended stays as it is."""
    run_id = before.info.run_id
    run = ActiveRun(client, run_id, points_of(client, before))
    if before.info.status == "FINISHED":
        run.has_ended = True
        return run
    run.tag(start.tags)  # first: without the tag of a living process it would be ended by whoever meets it
    client.update_run(run_id, "RUNNING", run_name(start.tags))
    for name in GONE_TAGS:
        if name in before.data.tags and name not in start.tags:
            client.delete_tag(run_id, name)
    if PATCH not in start.files and PATCH in {file.path for file in client.list_artifacts(run_id)}:
        client.log_text(run_id, "", PATCH)  # the changes were committed meanwhile
    return run

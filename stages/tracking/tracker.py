"""MLflow, the mirror of DVC's record: one training is one run, which evaluate completes.

A stage talks to its Tracker, which never fails. Behind it a RunWriter writes to the store, and raises what goes wrong
there; behind one that is off there is a NoWriter, which does nothing.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from stages.base.files import sha256
from stages.base.params import Params
from stages.batches.prepared import DatasetInfo
from stages.nets.weights import load_weights
from stages.tracking import provenance
from stages.tracking.guard import Guard
from stages.tracking.provenance import Provenance
from stages.tracking.result import EVALUATION_TAG, WEIGHTS_TAG, ResultFiles
from stages.tracking.store import Store, dataset, log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

LONGEST = 6000  # characters of a param that MLflow keeps
FLUSH_SECONDS = 2.0  # metrics are collected and written in one call: writing one takes longer than a step


class Tracker:
    """What a stage tells of its run. An error of the store costs a warning, and the rest of the run there."""

    def __init__(self, writer: "RunWriter | NoWriter") -> None:
        self._writer, self._guard = writer, Guard(writer.uri)

    @classmethod
    def from_environment(cls, params: Params, environment: Mapping[str, str] = os.environ) -> "Tracker":
        """Return the tracker of a stage: to the store of the environment, of what this process is."""
        store = Store.from_environment(environment)
        return cls(RunWriter(store, params.flat(), provenance.of_process(environment)))

    @classmethod
    def off(cls) -> "Tracker":
        """Return one that writes nothing."""
        return cls(NoWriter())

    @contextmanager
    def training(self, data: DatasetInfo, device: torch.device) -> Iterator["TrainingRun"]:
        """Yield a new run; it ends FINISHED, KILLED after Ctrl-C or SIGTERM, or FAILED with the error noted."""
        no_run: ActiveRun | NoRun = NoRun()
        started = self._guard.attempt(lambda: self._writer.start(data, provenance.of_computation(device)), no_run)
        run = TrainingRun(started, self._guard)
        try:
            yield run
        except BaseException as error:
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", note=str(error))
            raise
        run.end("FINISHED")

    def evaluated(self, files: ResultFiles) -> None:
        """Complete the run of the training that made these weights, or make one."""
        self._guard.attempt(lambda: self._writer.evaluated(files), None)


class TrainingRun:
    """The run of a training that is going on."""

    def __init__(self, run: "ActiveRun | NoRun", guard: Guard) -> None:
        self._run, self._guard = run, guard

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: all but its "epoch", which is the step."""
        self._guard.attempt(lambda: self._run.log_epoch(row), None)

    def log(self, metrics: dict[str, float]) -> None:
        """Log metrics of the training as a whole."""
        self._guard.attempt(lambda: self._run.log(metrics), None)

    def trained(self, weights: Path) -> None:
        """Tie the run to the weights file that it made."""
        self._guard.attempt(lambda: self._run.tag(WEIGHTS_TAG, sha256(weights)), None)

    def end(self, status: str, note: str = "") -> None:
        """End as FINISHED, FAILED or KILLED; `note` is shown as the run's description."""
        if self._guard.has_failed:
            self._run.abandon()
        else:
            self._guard.attempt(lambda: self._run.end(status, note), None)


class NoWriter:
    """Does nothing of what a RunWriter does."""

    uri = ""

    def start(self, _data: DatasetInfo, _tags: dict[str, str]) -> "NoRun":
        return NoRun()

    def evaluated(self, _files: ResultFiles) -> None:
        pass


class NoRun:
    """Does nothing of what an ActiveRun does."""

    def log(self, _metrics: dict[str, float]) -> None:
        pass

    def log_epoch(self, _row: dict[str, float]) -> None:
        pass

    def tag(self, _name: str, _value: str) -> None:
        pass

    def end(self, _status: str, _note: str = "") -> None:
        pass

    def abandon(self) -> None:
        pass


class RunWriter:
    """Writes runs of the same params and the same provenance to a store. Its methods raise what goes wrong there."""

    def __init__(self, store: Store, params: dict[str, Any], provenance: Provenance) -> None:
        self.uri, self._store, self.provenance = store.uri, store, provenance
        # As MLflow keeps them: text as it is, the rest as JSON, and of either its beginning.
        self.params = {
            key: (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST]
            for key, value in params.items()
        }

    def start(self, data: DatasetInfo, tags: dict[str, str]) -> "ActiveRun":
        """Create a run with its params, its datasets, and what changed since the commit."""
        client = self._store.client()  # before anything else of mlflow, which reads its settings when it is imported
        from mlflow.entities import Param

        tags = self.provenance.tags | tags
        name = tags.get("dvc.exp_name") or tags.get("mlflow.source.git.commit", "no commit")[:9]
        created = client.create_run(self._store.experiment_id, self.provenance.time, tags=tags, run_name=name)
        run = ActiveRun(client, created.info.run_id, self.provenance.time)
        with run.abandoned_on_error():
            client.log_batch(run.id, params=[Param(key, value) for key, value in self.params.items()])
            client.log_inputs(run.id, [dataset(data, split) for split in ("train", "valid")])
            if (rejected := data.folder / "rejected.csv").exists():
                client.log_artifact(run.id, str(rejected))
            if self.provenance.patch:
                with TemporaryDirectory() as folder:
                    (Path(folder) / "git.patch").write_bytes(self.provenance.patch)
                    client.log_artifact(run.id, f"{folder}/git.patch")
        return run

    def evaluated(self, files: ResultFiles) -> None:
        """Complete the run of the training that made these weights.

        That is the latest run of these weights and params in the same DVC experiment that lacks an evaluation: none is
        overwritten. Where there is no such run, since this is another evaluation, or since DVC took the weights from
        its cache, a new one is made.
        """
        digests, tags = files.digests(), self.provenance.tags
        runs = [run for run in self.found(digests) if run.data.tags.get("dvc.exp_name") == tags.get("dvc.exp_name")]
        lacking = [run for run in runs if lacks_evaluation(run)]
        # Another clone may have made the same weights in the same store: our own directory goes first.
        lacking.sort(key=lambda run: run.data.tags.get("directory") != tags["directory"])
        if lacking:
            self.complete(files, lacking[0].info.run_id)
        elif not any(has_evaluation(run, digests) for run in runs):
            self.complete(files)

    def found(self, digests: dict[str, str]) -> list["Run"]:
        """Return the runs of the weights with this digest and of the same params, the latest first."""
        runs = self._store.client().search_runs(
            [self._store.experiment_id], f"tags.`{WEIGHTS_TAG}` = '{digests[WEIGHTS_TAG]}'"
        )
        return [run for run in runs if run.data.params == self.params]

    def complete(self, files: ResultFiles, run_id: str = "") -> str:
        """Write the evaluation to its run, or without an id the whole result to a new one. Return the run's id.

        Raises InputError if weights or dataset.json are not as written today.
        """
        digests, data = files.digests(), DatasetInfo(files.prepared)
        net, description = load_weights(files.weights)
        metrics, epochs, lock = files.metrics(description), files.epochs(), files.lock()
        client = self._store.client()
        if run_id:
            run = ActiveRun(client, run_id, self.provenance.time, status_on_error="FINISHED")
        else:
            run = self.start(data, {WEIGHTS_TAG: digests[WEIGHTS_TAG], "training": "not repeated for this run"})
        with run.abandoned_on_error():
            for row in [] if run_id else epochs:
                run.log_epoch(row)
            client.log_inputs(run.id, [dataset(data, "test")])
            run.log(metrics, model_id=log_model(run.id, description.classifier(net), data))
            for path in (files.root / "params.yaml", files.root / "dvc.yaml", files.results):
                client.log_artifact(run.id, str(path))
            if lock:
                client.log_text(run.id, lock, "dvc.lock")
            client.log_artifacts(run.id, str(files.plots), "plots")
            run.flush()
            run.tag(EVALUATION_TAG, digests[EVALUATION_TAG])
            run.end("FINISHED")
        return run.id


def lacks_evaluation(run: "Run") -> bool:
    """Return whether a run was trained to the end and not evaluated yet."""
    return run.info.status == "FINISHED" and EVALUATION_TAG not in run.data.tags


def has_evaluation(run: "Run", digests: dict[str, str]) -> bool:
    """Return whether a run holds the evaluation with this digest."""
    return bool(run.data.tags.get(EVALUATION_TAG) == digests[EVALUATION_TAG])


class ActiveRun:
    """A run that is being written. Its methods raise what goes wrong with the store."""

    def __init__(
        self, client: "MlflowClient", run_id: str, end_time: int | None, status_on_error: str = "FAILED"
    ) -> None:
        """`end_time`, in ms since 1970, is when it is said to end; None: when it does."""
        self.id, self._client, self._end_time, self._status_on_error = run_id, client, end_time, status_on_error
        self._collected: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, metrics: dict[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Log `metrics` at `step`; they may be held back for some seconds, to be written with others."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._collected += [Metric(name, value, now, step, model_id) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def log_epoch(self, row: dict[str, float]) -> None:
        self.log({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))

    def flush(self) -> None:
        """Write what was held back."""
        collected, self._collected, self._flushed = self._collected, [], time.monotonic()
        for start in range(0, len(collected), 1000):  # as many as one call takes
            self._client.log_batch(self.id, metrics=collected[start : start + 1000])

    def tag(self, name: str, value: str) -> None:
        self._client.set_tag(self.id, name, value)

    def end(self, status: str, note: str = "") -> None:
        """Write what was held back, and end with this status; `note` is shown as the run's description."""
        with self.abandoned_on_error():
            self.flush()
            if note:
                self.tag("mlflow.note.content", note)
            self._client.set_terminated(self.id, status, self._end_time)

    @contextmanager
    def abandoned_on_error(self) -> Iterator[None]:
        """Abandon the run if what is within does not come to an end, so that it does not stay RUNNING."""
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Try to end the run with the status that it has where something went wrong."""
        with suppress(Exception):
            self._client.set_terminated(self.id, self._status_on_error)

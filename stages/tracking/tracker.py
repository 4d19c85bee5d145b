"""MLflow, the mirror of DVC's record: one training is one run, which evaluate completes.

Tracking never costs a training: when the store fails, a Tracker warns once and is off from then on.
"""

import json
import os
import sys
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
from stages.tracking import provenance
from stages.tracking.provenance import Provenance
from stages.tracking.result import EVALUATION_TAG, WEIGHTS_TAG, ResultFiles
from stages.tracking.store import Store, dataset, log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as Logged

LONGEST = 6000  # characters of a param that MLflow keeps
FLUSH_SECONDS = 2.0  # metrics wait to be written together: writing one takes longer than a step


class Tracker:
    """Writes runs of the same params and the same origin to a store."""

    def __init__(self, store: Store, params: dict[str, Any], origin: Provenance, sparing: bool = True) -> None:
        """With `sparing`, no error of the store reaches the caller."""
        self.store, self.origin = store, origin
        # As MLflow keeps them: text as it is, the rest as JSON, and of either its beginning.
        self.params = {
            key: (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST]
            for key, value in params.items()
        }
        self._off, self._spared = False, not sparing

    @classmethod
    def from_environment(cls, params: Params, environment: Mapping[str, str] = os.environ) -> "Tracker":
        """Return the tracker of a stage: to the store of the environment, of what this process is."""
        return cls(Store.from_environment(environment), params.flat(), provenance.of_process(environment))

    @classmethod
    def off(cls) -> "Tracker":
        """Return one that writes nothing."""
        tracker = cls(Store("", ""), {}, Provenance({}))
        tracker._off = True
        return tracker

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Keep an error of the store from the caller: warn of the first one, and switch tracking off.

        Of nested ones the outermost does so: what fails inside of a larger piece of work ends all of it.
        """
        if self._spared:
            yield
            return
        self._spared = True
        try:
            yield
        except Exception as error:
            if not self._off:
                print(
                    f"warning: MLflow at {self.store.uri} failed, so this run is missing or incomplete there; the"
                    " results are not affected, and python -m tools.sync brings them there once it is back."
                    f" {type(error).__name__}: {error}",
                    file=sys.stderr,
                )
            self._off = True
        finally:
            self._spared = False

    def client(self) -> "MlflowClient":
        """Return the store's client, connecting first. Raises whatever is wrong with it: call this within `spared`."""
        if self._off:
            raise RuntimeError("tracking is off")
        return self.store.client()

    @contextmanager
    def training(self, data: DatasetInfo, device: torch.device) -> Iterator["ActiveRun"]:
        """Yield a new run; it ends FINISHED, KILLED after Ctrl-C or SIGTERM, or FAILED with the error noted."""
        run = self._start(data, provenance.of_computation(device))
        try:
            yield run
        except BaseException as error:
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", note=str(error))
            raise
        run.end("FINISHED")

    def _start(self, data: DatasetInfo, tags: dict[str, str]) -> "ActiveRun":
        run = ActiveRun(self, "")
        with self.spared():
            client = self.client()  # before anything else of mlflow, which reads its settings when it is imported
            from mlflow.entities import Param

            tags = self.origin.tags | tags
            name = tags.get("dvc.exp_name") or tags.get("mlflow.source.git.commit", "no commit")[:9]
            created = client.create_run(self.store.experiment_id, self.origin.time, tags=tags, run_name=name)
            run.id = created.info.run_id
            with run.ending("FAILED"):
                client.log_batch(run.id, params=[Param(key, value) for key, value in self.params.items()])
                client.log_inputs(run.id, [dataset(data, split) for split in ("train", "valid")])
                if (rejected := data.folder / "rejected.csv").exists():
                    client.log_artifact(run.id, str(rejected))
                if self.origin.patch:
                    with TemporaryDirectory() as folder:
                        (Path(folder) / "git.patch").write_bytes(self.origin.patch)
                        client.log_artifact(run.id, f"{folder}/git.patch")
        return run

    def evaluated(self, record: ResultFiles) -> None:
        """Complete the run of the training that made the record's weights.

        That is the latest run of these weights and params in the same DVC experiment that has not been evaluated: no
        evaluation is overwritten. Where there is none, since this is another evaluation, or since DVC took the weights
        from its cache, a new run is made.
        """
        with self.spared():
            digests = record.digests()
            ours = [
                run
                for run in self.found(digests[WEIGHTS_TAG])
                if run.data.tags.get("dvc.exp_name") == self.origin.tags.get("dvc.exp_name")
            ]
            waiting = [run for run in ours if lacks_evaluation(run)]
            # Another clone may have made the same weights in the same store: our own directory goes first.
            waiting.sort(key=lambda run: run.data.tags.get("directory") != self.origin.tags["directory"])
            if waiting:
                self.complete(record, waiting[0].info.run_id)
            elif not any(run.data.tags.get(EVALUATION_TAG) == digests[EVALUATION_TAG] for run in ours):
                self.complete(record)

    def found(self, weights: str) -> list["Logged"]:
        """Return the runs of the weights with this digest and of the same params, the latest first."""
        client = self.client()
        runs = client.search_runs([self.store.experiment_id], f"tags.`{WEIGHTS_TAG}` = '{weights}'")
        return [run for run in runs if run.data.params == self.params]

    def complete(self, record: ResultFiles, run_id: str = "") -> str:
        """Write the record's evaluation to its run, or without an id all of the record to a new one. Return the id.

        Raises whatever is wrong with the store or the record: call this within `spared`.
        """
        digests, contents = record.digests(), record.read()
        # Where it fails from here on, a trained run stays as it was, to be completed by the next evaluation.
        run, status_on_error = ActiveRun(self, run_id), "FINISHED"
        if not run_id:
            tags = {WEIGHTS_TAG: digests[WEIGHTS_TAG], "training": "not repeated for this run"}
            run, status_on_error = self._start(contents.data, tags), "FAILED"
        with run.ending(status_on_error):
            for row in [] if run_id else contents.history:
                run.log_epoch(row)
            client = self.client()
            client.log_inputs(run.id, [dataset(contents.data, "test")])
            run.log(contents.metrics, model_id=log_model(run.id, contents.classifier, contents.data))
            for path in (record.root / "params.yaml", record.root / "dvc.yaml", record.results):
                client.log_artifact(run.id, str(path))
            if contents.lock:
                client.log_text(run.id, contents.lock, "dvc.lock")
            client.log_artifacts(run.id, str(record.plots), "plots")
            run.flush()
            client.set_tag(run.id, EVALUATION_TAG, digests[EVALUATION_TAG])
            run.end("FINISHED")
        return run.id


def lacks_evaluation(run: "Logged") -> bool:
    """Return whether a run was trained to the end and not evaluated yet."""
    return run.info.status == "FINISHED" and EVALUATION_TAG not in run.data.tags


class ActiveRun:
    """A run to log to. Where the store has failed, its methods do nothing."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self.id = tracker, run_id
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, metrics: dict[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Log `metrics` at `step`; they may wait some seconds to be written together."""
        with self._tracker.spared():
            self._tracker.client()
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            self._waiting += [Metric(name, value, now, step, model_id) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: all but its "epoch", which is the step."""
        self.log({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))

    def flush(self) -> None:
        """Write what waits."""
        with self._tracker.spared():
            for start in range(0, len(self._waiting), 1000):  # as many as one call takes
                self._tracker.client().log_batch(self.id, metrics=self._waiting[start : start + 1000])
        self._waiting, self._flushed = [], time.monotonic()

    def trained(self, weights: Path) -> None:
        """Tie the run to the weights file that it made."""
        with self._tracker.spared():
            self._tracker.client().set_tag(self.id, WEIGHTS_TAG, sha256(weights))

    def end(self, status: str, note: str = "") -> None:
        """End as FINISHED, FAILED or KILLED; `note` is shown as the run's description."""
        with self._tracker.spared(), self.ending("FAILED"):
            self.flush()
            if note:
                self._tracker.client().set_tag(self.id, "mlflow.note.content", note)
            self._tracker.client().set_terminated(self.id, status, self._tracker.origin.time)

    @contextmanager
    def ending(self, status: str) -> Iterator[None]:
        """Try to end the run with this status if what is within does not come to an end, lest it stay RUNNING."""
        try:
            yield
        except BaseException:
            if self.id and self._tracker.store.connection:
                with suppress(Exception):
                    self._tracker.store.connection.set_terminated(self.id, status)
            raise

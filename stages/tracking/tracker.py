"""MLflow, the mirror of DVC's record: one training is one run, which evaluate completes.

A stage tells its Tracker, which never fails, what happens. That writes it to a journal, which a process beside the
stage brings to the store; what does not arrive, `tools.sync` brings.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from stages.base.attempts import Attempt
from stages.base.files import rounded, sha256
from stages.base.params import Params
from stages.base.text import warn
from stages.batches.prepared import DatasetInfo
from stages.tracking import provenance
from stages.tracking.datasets import dataset_record
from stages.tracking.environment import ARTIFACT, environment
from stages.tracking.follower import Follower
from stages.tracking.journal import Journal
from stages.tracking.params import as_logged, with_used
from stages.tracking.provenance import Provenance
from stages.tracking.replay import place_of
from stages.tracking.result import (
    ATTEMPT_TAG,
    PATCH,
    RECORD,
    RECORD_TAG,
    RESUMED_TAG,
    TRAINING_TAG,
    WEIGHTS_TAG,
    ResultFiles,
)
from stages.tracking.store import Store
from stages.tracking.writer import snapshot


class Tracker:
    """What a stage tells of its run."""

    def __init__(self, params: dict[str, str], origin: Provenance | None, environment: Mapping[str, str]) -> None:
        """Without an origin nothing is tracked."""
        self._params, self._origin, self._environment = params, origin, environment
        self._store = Store.from_environment(environment)
        self._evaluation: Record | None = None

    @classmethod
    def from_environment(cls, params: Params, environment: Mapping[str, str] = os.environ) -> "Tracker":
        """Return the tracker of a stage: to the store of the environment, of what this process is."""
        return cls(as_logged(params.flat()), provenance.of_process(environment), environment)

    @classmethod
    def off(cls) -> "Tracker":
        """Return one that writes nothing."""
        return cls({}, None, {})

    @contextmanager
    def training(
        self,
        data: DatasetInfo,
        device: torch.device,
        used: dict[str, str],
        attempt: Attempt | None = None,
        sampled: float = 0.0,
    ) -> Iterator["TrainingRun"]:
        """Yield a new run, of a training with the settings `used`, or the one of the attempt before.

        Meanwhile the machine is `sampled` every so many seconds, 0: not at all. It ends FINISHED, KILLED after Ctrl-C
        or SIGTERM, or FAILED with the error noted.
        """
        run = TrainingRun(self._record())
        if self._origin:
            tags = self._origin.tags | provenance.of_writer() | provenance.of_computation(device)
            tags |= {RECORD_TAG: str(RECORD)}
            if attempt:
                tags |= {TRAINING_TAG: attempt.training, ATTEMPT_TAG: str(attempt.number)}
            run.start(tags, with_used(self._params, used), data, environment(device), self._origin.patch, sampled)
        try:
            yield run
        except BaseException as error:
            run.end(
                "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", note=str(error) or type(error).__name__
            )
            raise
        run.end("FINISHED")

    def expect_evaluation(self) -> None:
        """Get ready to log one, while it is computed."""
        self._evaluation = self._record()
        self._evaluation.follow(is_evaluation=True)

    def evaluated(self, files: ResultFiles) -> None:
        """Complete the run of the training that made these weights, or make one."""
        record, origin = self._evaluation or self._record(), self._origin
        if origin:
            record.write(lambda journal: snapshot(journal, files, self._params, origin))
        record.finish()

    def _record(self) -> "Record":
        return Record(self._store, self._environment, is_on=self._origin is not None)


class Record:
    """A journal and what follows it. What it costs if there is no place for the one is a warning, and the other."""

    def __init__(self, store: Store, environment: Mapping[str, str], is_on: bool) -> None:
        self._store, self._environment = store, environment
        self._journal: Journal | None = None
        self._follower: Follower | None = None
        if is_on:
            about = {"store": place_of(store, environment), "experiment": store.experiment}
            with self._warning():
                self._journal = Journal(environment, **about)

    def write(self, action: Callable[[Journal], None]) -> None:
        """Write to the journal."""
        if self._journal:
            with self._warning():
                action(self._journal)

    def follow(self, is_evaluation: bool = False) -> None:
        """Let MLflow follow the journal from now on."""
        if self._journal and not self._follower:
            try:
                self._follower = Follower(
                    self._store, self._journal.folder, self._environment, is_evaluation=is_evaluation
                )
            except (OSError, RuntimeError) as error:  # no memory for a process, or a thread
                warn(f"warning: nothing brings this run to MLflow now; python -m tools.sync will. {error}")

    def finish(self) -> None:
        """End the journal, and wait for what follows it, but not for long."""
        self.follow()
        if self._journal and self._follower:
            try:
                self._follower.finish()
            finally:
                self._journal.close()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warn(
                f"warning: this run cannot be logged: {error.strerror}: {error.filename or 'its journal'}; the results"
                " are not affected, and python -m tools.sync brings them to MLflow once there is a place"
            )
            # What there is of the run will be completed from DVC's record, as that of a process that has ended.
            if self._follower:
                self._follower.abandon()
            if self._journal:
                self._journal.discard()
            self._journal = self._follower = None


class TrainingRun:
    """The run of a training that is going on."""

    def __init__(self, record: "Record") -> None:
        self._record = record

    def start(
        self,
        tags: dict[str, str],
        params: dict[str, str],
        data: DatasetInfo,
        environment: dict[str, object],
        patch: bytes,
        sampled: float,
    ) -> None:
        """Begin, with what is known before the training, what prepare left out and the changes since the commit."""

        def start(journal: Journal) -> None:
            files = journal.keep(ARTIFACT, json.dumps(environment, indent=2).encode())
            if patch:
                files |= journal.keep(PATCH, patch)
            if (rejected := data.folder / "rejected.csv").exists():
                files |= journal.keep(rejected.name, rejected)
            datasets = [dataset_record(data, split) for split in ("train", "valid")]
            known = {"tags": tags, "params": params, "datasets": datasets, "files": files}
            journal.write("training", **known, sampled=sampled)

        self._record.write(start)
        self._record.follow()

    def resumed(self, rows: list[dict[str, float]], batches: int) -> None:
        """Go on after these rows of the history, of which the run has what was logged before, and batches."""
        for row in rows:
            self.log_epoch(row)
        if rows or batches:
            self._tag(RESUMED_TAG, f"{rows[-1]['epoch'] if rows else 0:.0f}")

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: all but its "epoch", which is the step."""
        # MLflow's page that compares runs opens with the metric that came first, but for points of steps: the
        # validation accuracy is the last.
        self.log({name: value for name, value in reversed(row.items()) if name != "epoch"}, step=int(row["epoch"]))

    def log_step(self, loss: float, lr: float, step: int) -> None:
        """Log a batch's loss, and the learning rate of its step; `step` counts from the training's first, 1."""
        self.log({"step/loss": rounded(loss), "step/lr": rounded(lr)}, step)

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log metrics, by default of the training as a whole."""
        self._record.write(lambda journal: journal.write("points", step=step, metrics=metrics))

    def trained(self, weights: Path) -> None:
        """Tie the run to the weights file that it made."""
        self._tag(WEIGHTS_TAG, sha256(weights))

    def end(self, status: str, note: str = "") -> None:
        """End as FINISHED, FAILED or KILLED; `note` is shown as the run's description."""
        self._record.write(lambda journal: journal.write("end", status=status, note=note))
        self._record.finish()

    def _tag(self, name: str, value: str) -> None:
        self._record.write(lambda journal: journal.write("tags", tags={name: value}))

"""MLflow, the mirror of DVC's record: one training is one run, which evaluate completes.

A stage talks to its Tracker, which never fails. Behind it a RunWriter writes to the store, and raises what goes wrong
there; behind one that is off there is a NoWriter, which does nothing.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from stages.base.files import sha256
from stages.base.params import Params
from stages.batches.prepared import DatasetInfo
from stages.tracking import provenance
from stages.tracking.environment import environment
from stages.tracking.guard import Guard
from stages.tracking.result import RESUMED_TAG, WEIGHTS_TAG, ResultFiles
from stages.tracking.run import ActiveRun, NoRun
from stages.tracking.store import Store
from stages.tracking.writer import NoWriter, RunWriter


class Tracker:
    """What a stage tells of its run. An error of the store costs a warning, and the rest of the run there."""

    def __init__(self, writer: RunWriter | NoWriter) -> None:
        self._writer, self._guard = writer, Guard(writer.store)

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
    def training(
        self, data: DatasetInfo, device: torch.device, used: dict[str, str], checkpoint: str = ""
    ) -> Iterator["TrainingRun"]:
        """Yield a new run, of a training with the settings `used`, or the interrupted one with this checkpoint.

        It ends FINISHED, KILLED after Ctrl-C or SIGTERM, or FAILED with the error noted.
        """
        no_run: ActiveRun | NoRun = NoRun()
        tags = provenance.of_computation(device)
        started = self._guard.attempt(
            lambda: self._writer.start(data, used, tags, checkpoint, environment(device)), no_run
        )
        run = TrainingRun(started, self._guard)
        try:
            yield run
        except BaseException as error:
            run.end(
                "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", note=str(error) or type(error).__name__
            )
            raise
        run.end("FINISHED")

    def evaluated(self, files: ResultFiles) -> None:
        """Complete the run of the training that made these weights, or make one."""
        self._guard.attempt(lambda: self._writer.evaluated(files), None)


class TrainingRun:
    """The run of a training that is going on."""

    def __init__(self, run: ActiveRun | NoRun, guard: Guard) -> None:
        self._run, self._guard = run, guard

    def resumed(self, rows: list[dict[str, float]]) -> None:
        """Go on after these rows of the history, of which the run has what was logged before the interruption."""
        for row in rows:
            self.log_epoch(row)
        if rows:
            self._guard.attempt(lambda: self._run.tag(RESUMED_TAG, f"{rows[-1]['epoch']:.0f}"), None)

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

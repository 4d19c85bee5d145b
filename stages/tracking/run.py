"""A run that is being written to the store."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stages.tracking.result import NOTE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLUSH_SECONDS = 2.0  # metrics are collected and written in one call: writing one takes longer than a step


class ActiveRun:
    """A run that is being written. Its methods raise what goes wrong with the store."""

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        end_time: int | None,
        status_on_error: str = "FAILED",
        logged: Collection[tuple[str, int]] = (),
    ) -> None:
        """`end_time` is the end to record, ms since 1970; None: the time when it ends.

        What has been `logged`, a name at a step each, is not logged again.
        """
        self._logged = logged
        self.id, self._client, self._end_time, self._status_on_error = run_id, client, end_time, status_on_error
        self._collected: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, metrics: dict[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Log `metrics` at `step`; they may be held back for some seconds, to be written with others."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._collected += [
            Metric(name, value, now, step, model_id)
            for name, value in metrics.items()
            if (name, step) not in self._logged
        ]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: all but its "epoch", which is the step."""
        # MLflow's page that compares runs opens with the metric that came first: the validation accuracy is the last.
        self.log({name: value for name, value in reversed(row.items()) if name != "epoch"}, step=int(row["epoch"]))

    def flush(self) -> None:
        """Write what was held back."""
        collected, self._collected, self._flushed = self._collected, [], time.monotonic()
        for start in range(0, len(collected), 1000):  # as many as one call takes
            self._client.log_batch(self.id, metrics=collected[start : start + 1000])

    def tag(self, name: str, value: str) -> None:
        """Set a tag, at once."""
        self._client.set_tag(self.id, name, value)

    def end(self, status: str, note: str = "") -> None:
        """Write what was held back, and end with this status; `note` is shown as the run's description."""
        with self.abandoned_on_error():
            self.flush()
            if note:
                self.tag(NOTE_TAG, note)
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

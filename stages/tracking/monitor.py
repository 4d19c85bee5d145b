"""What the machine does while a run goes on, as MLflow measures it: system/… among its metrics."""

import time
from contextlib import suppress
from typing import Any

PREFIX = "system/"  # of which MLflow's page of a run makes a view of its own


class Machine:
    """Samples of the machine: processors, memory, disk, network, and a GPU if the extra `gpu` is installed."""

    def __init__(self, seconds: float) -> None:
        """A sample is due every so many seconds, the first after as many."""
        self._seconds, self._last = seconds, time.monotonic()
        self._monitors: list[Any] = []
        with suppress(Exception):  # a system that lets nobody look
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # Only for what it has found: its own thread would end with the first answer of the store that fails.
            self._monitors = SystemMetricsMonitor(run_id="").monitors
        self._measured()  # how busy the processors are is told since the time before

    def sample(self) -> dict[str, float]:
        """Return what has been measured if a sample is due; else nothing. What cannot be measured is left out."""
        if time.monotonic() - self._last < self._seconds:
            return {}
        self._last = time.monotonic()
        return self._measured()

    def _measured(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            with suppress(Exception):
                monitor.collect_metrics()
                found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{PREFIX}{name}": float(value) for name, value in found.items()}

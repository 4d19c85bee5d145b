"""What the machine does while a run goes on, as MLflow measures it: system/… among its metrics."""

import time
from contextlib import suppress

PREFIX = "system/"  # of which MLflow's page of a run makes a view of its own


class Machine:
    """Samples of the machine: processors, memory, disk, network, and a GPU if the extra `gpu` is installed."""

    def __init__(self, seconds: float) -> None:
        """A sample is due every so many seconds, the first after as many."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._seconds, self._last = seconds, time.monotonic()
        self._monitor = SystemMetricsMonitor(run_id="")  # its thread would end with the first answer that fails
        self._measured()  # how busy the processors are is told since the time before

    def sample(self) -> dict[str, float]:
        """Return what has been measured if a sample is due, and can be taken; else nothing."""
        if time.monotonic() - self._last < self._seconds:
            return {}
        self._last = time.monotonic()
        return self._measured()

    def _measured(self) -> dict[str, float]:
        found: dict[str, float] = {}
        with suppress(Exception):  # a system says less than another
            self._monitor.collect_metrics()
            found = self._monitor.aggregate_metrics()
            for each in self._monitor.monitors:
                each.clear_metrics()
        return {f"{PREFIX}{name}": float(value) for name, value in found.items()}

"""What the machine does while a run goes on, as MLflow measures it: system/… among its metrics."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


def monitored(run_id: str, uri: str, seconds: float) -> "SystemMetricsMonitor":
    """Return a monitor that samples the machine every so many seconds, until its `finish`.

    Samples that a store does not take are lost: they are no part of a result. Where the run has some, they go on.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor

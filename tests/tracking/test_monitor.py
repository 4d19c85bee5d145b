"""What MLflow measures of the machine while a training goes on: from the process beside it, if params ask for it."""

import shutil
from pathlib import Path

import mlflow
import pytest

from stages.tracking.monitor import Machine
from stages.tracking.replay import Replay
from stages.tracking.run import ActiveRun, points_of
from tests.conftest import Project
from tests.tracking.conftest import only_run

EPOCHS = 300


def test_the_machine_is_sampled_while_a_training_goes_on(project: Project) -> None:
    project("python", "-m", "stages.prepare", "data/prepared")
    project.edit("params.yaml", "epochs: 30 ", f"epochs: {EPOCHS} ")
    made = []
    for seconds in ("0", "0.3"):
        project.edit("params.yaml", "log_system: 0 ", f"log_system: {seconds} ")
        project("python", "-m", "stages.train", "data/prepared", "net", "train.csv")
        made.append((project.root / "net").read_bytes())
    assert made[0] == made[1]
    sampled, plain = project.runs()
    assert sampled.info.status == plain.info.status == "FINISHED"
    assert not [name for name in plain.data.metrics if name.startswith("system/")]
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    for name, most in (("cpu_utilization_percentage", 100), ("system_memory_usage_percentage", 100)):
        points = client.get_metric_history(sampled.info.run_id, f"system/{name}")
        assert [point.step for point in points] == list(range(len(points)))
        assert len(points) >= 2
        assert all(0 <= point.value <= most for point in points)
    assert len(client.get_metric_history(sampled.info.run_id, "valid/accuracy")) == EPOCHS


def test_samples_go_on_after_a_failure_and_after_an_attempt(store: Path, tmp_path: Path) -> None:
    """What the process beside the stage does, with a store that fails in between."""
    shutil.copy(store / "mlflow.db", tmp_path)
    run = only_run(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    replay = Replay.__new__(Replay)
    replay._run = ActiveRun(client, run.info.run_id)
    assert Machine(60).sample() == {}, "none is due yet"
    machine = Machine(0)
    replay.log_machine(machine.sample())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psutil.cpu_percent", lambda *_, **__: 1 / 0)
        measured = machine.sample()
        assert "system/cpu_utilization_percentage" not in measured
        assert "system/disk_usage_percentage" in measured, "one that fails leaves the others"
        patch.setattr("psutil.net_io_counters", lambda *_, **__: None)
        assert Machine(0).sample() == {}, "a system that lets nobody look"
    replay.log_machine(machine.sample())
    replay._run = ActiveRun(client, run.info.run_id, points_of(client, client.get_run(run.info.run_id)))
    replay.log_machine(machine.sample())
    points = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in points] == [0, 1, 2]

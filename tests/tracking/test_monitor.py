"""What MLflow measures of the machine while a training goes on: from the process beside it, if params ask for it."""

import mlflow

from tests.conftest import Project

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

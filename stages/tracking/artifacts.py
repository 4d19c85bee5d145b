"""What a run has in MLflow's place for artifacts: its files, and those of its models."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from stages.tracking.result import TIDIED_TAG, WEIGHTS, ResultFiles

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


def names_of(files: ResultFiles) -> list[str]:
    """Return the names of the artifacts that the run of a result has, besides its weights and its model."""
    plots = [f"plots/{path.relative_to(files.plots)}" for path in sorted(files.plots.rglob("*.*"))]
    return ["params.yaml", "dvc.yaml", files.results.name, *plots]


def lacking(client: "MlflowClient", run: "Run", names: list[str]) -> list[str]:
    """Return what a run lacks of these artifacts, of weights and its model: it was moved or removed.

    Earlier versions did not log the weights. What tools.tidy has removed is not lacking.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    # Through the client each folder would be a question to the database, too.
    found = set(_files(get_artifact_repository(run.info.artifact_uri, client.tracking_uri)))
    gone = [name for name in names if name not in found]
    if TIDIED_TAG in run.data.tags:
        return gone
    if not any(name.startswith(f"{WEIGHTS}/") for name in found):
        gone.insert(0, WEIGHTS)
    return gone + ["model"] * bool(lost_models(client, run))


def models_of(run: "Run") -> list[str]:
    """Return the ids of the models that a run has logged."""
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def lost_models(client: "MlflowClient", run: "Run") -> list[str]:
    """Return the ids of a run's models that have no files. Those that the user has deleted are not lost."""
    from mlflow.exceptions import MlflowException

    lost = []
    for model_id in models_of(run):
        with suppress(MlflowException):  # of a deleted one
            client.get_logged_model(model_id)
            lost += [model_id] if not client.list_logged_model_artifacts(model_id) else []
    return lost


def _files(place: "ArtifactRepository", folder: str | None = None) -> Iterator[str]:
    """Yield the paths of the files in a place for artifacts."""
    for artifact in place.list_artifacts(folder):
        if artifact.is_dir:
            yield from _files(place, artifact.path)
        else:
            yield artifact.path

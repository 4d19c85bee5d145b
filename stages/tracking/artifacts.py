"""What a run has in MLflow's place for artifacts: its files, and those of its models."""

from contextlib import suppress
from dataclasses import dataclass
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
    found = set(_files(_place(client, run.info.artifact_uri)))
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


@dataclass(frozen=True)
class Heavy:
    """Files of a run that its record does without: its weights, or one of its models."""

    place: "ArtifactRepository"
    folder: str | None  # in that place, None: all of it
    model_id: str  # "" for weights
    size: int  # bytes

    def remove(self) -> None:
        """Remove the files. Raises whatever is wrong with the place."""
        self.place.delete_artifacts(self.folder)  # type: ignore[no-untyped-call]


def heavy(client: "MlflowClient", run: "Run") -> list[Heavy]:
    """Return what there is of a run's weights and models. Raises whatever is wrong with the store."""
    from mlflow.exceptions import MlflowException

    found: list[tuple[ArtifactRepository, str | None, str]] = [(_place(client, run.info.artifact_uri), WEIGHTS, "")]
    for model_id in models_of(run):
        with suppress(MlflowException):  # of a deleted one
            found.append((_place(client, client.get_logged_model(model_id).artifact_location), None, model_id))
    sizes = [sum(_files(place, folder).values()) for place, folder, _ in found]
    return [Heavy(*each, size) for each, size in zip(found, sizes, strict=True) if size]


def _place(client: "MlflowClient", uri: str) -> "ArtifactRepository":
    """Return a place for artifacts: through the client each folder would be a question to the database, too."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, client.tracking_uri)


def _files(place: "ArtifactRepository", folder: str | None = None) -> dict[str, int]:
    """Return the sizes of the files in a place for artifacts, by their paths."""
    files: dict[str, int] = {}
    for artifact in place.list_artifacts(folder):
        files |= _files(place, artifact.path) if artifact.is_dir else {artifact.path: artifact.file_size or 0}
    return files

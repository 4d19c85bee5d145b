"""Runs as MLflow holds them, found by what people call them."""

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import InputError, listed
from stages.base.files import read_csv, sha256
from stages.tracking.result import EVALUATION_TAG, WEIGHTS, WEIGHTS_TAG
from stages.tracking.store import Store
from stages.training.selection import rank

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that was trained and evaluated, as tools read it."""

    id: str
    name: str  # DVC's experiment, or the abbreviated commit
    params: dict[str, str]  # by their dotted names, as MLflow keeps them: text as it is, the rest as JSON
    metrics: dict[str, float]
    tags: dict[str, str]
    data: dict[str, str]  # name and digest of the dataset by its context: training, validation, testing
    patch: str  # what differed from the commit, as git prints it
    model: str  # MLflow's address of it: models:/<id>
    predictions: pd.DataFrame  # a row for each test image: index, label, predicted, a probability for each class

    def right(self) -> npt.NDArray[np.bool_]:
        """Return for each test image whether it was classified correctly."""
        return (self.predictions["label"] == self.predictions["predicted"]).to_numpy()


class Runs:
    """The runs in the store of the stages, for reading."""

    def __init__(self) -> None:
        """Connect to the store. Raises InputError if it cannot be reached, or does not exist yet."""
        store = Store.from_environment()
        self.uri, self.name = store.uri, store.name
        if store.database and not store.database.exists():
            raise InputError(f"there are no runs yet, since there is no {store.database}: make repro comes first")
        try:
            self.client = store.client()
        except Exception as error:
            raise InputError(f"MLflow at {self.name} cannot be read: {store.why(error)}") from error
        self.store, self.experiment_id = store, store.experiment_id

    def model_version(self, name: str, alias: str) -> "ModelVersion | None":
        """Return the registered model's version with this alias, None if there is none.

        Raises InputError if the registry cannot be read.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise InputError(f"the registry in {self.name} cannot be read: {self.store.why(error)}") from error

    def of_model(self, name: str) -> EvaluatedRun:
        """Return the run of a model of the registry, MODEL@ALIAS. Raises InputError if there is none."""
        version = self.model_version(*name.split("@", 1))
        if version is None or not version.run_id:
            raise InputError(f"the registry in {self.name} has no model {name}{' of a run' if version else ''}")
        return self.find(version.run_id)

    def weights(self, run: EvaluatedRun, folder: Path) -> Path:
        """Copy the weights of a run into `folder`, and return their path.

        Raises InputError if it has none, or others than it was evaluated with.
        """
        files = self.client.list_artifacts(run.id, WEIGHTS)
        if not files:
            raise InputError(f"the run {run.name} was logged without its weights; python -m tools.sync adds them")
        path = Path(self.client.download_artifacts(run.id, files[0].path, str(folder)))
        if sha256(path) != run.tags[WEIGHTS_TAG]:
            raise InputError(f"the run {run.name} has other weights in {self.name} than it was evaluated with")
        return path

    def find(self, name: str) -> EvaluatedRun:
        """Return the evaluated run with this id or name, the latest of several.

        "best" is the best by validation of those that were validated on the same images as the latest run. Raises
        InputError if there is none, naming those that there are.
        """
        evaluated = self.store.search(having=[EVALUATION_TAG])
        if name == "best" and evaluated:
            images = _data(evaluated[0])["validation"]
            return self._read(max((run for run in evaluated if _data(run)["validation"] == images), key=_rank))
        for run in evaluated:
            if name in (run.info.run_id, run.info.run_name):
                return self._read(run)
        known = listed(["best", *dict.fromkeys(run.info.run_name for run in evaluated)])
        raise InputError(f"no evaluated run is called {name!r} in {self.name}; there are: {known}")

    def _read(self, run: "MlflowRun") -> EvaluatedRun:
        from mlflow.artifacts import load_text

        assert run.outputs is not None  # evaluate logs the model
        files = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        return EvaluatedRun(
            id=run.info.run_id,
            name=run.info.run_name,
            params=run.data.params,
            metrics=run.data.metrics,
            tags=run.data.tags,
            data=_data(run),
            patch=load_text(f"{run.info.artifact_uri}/git.patch") if "git.patch" in files else "",
            model=f"models:/{run.outputs.model_outputs[0].model_id}",
            predictions=read_predictions(load_text(f"{run.info.artifact_uri}/plots/predictions.csv")),
        )


def read_predictions(text: str) -> pd.DataFrame:
    """Return the table of a predictions.csv. Its classes are text: pandas would take NA for none, and 01 for 1."""
    return read_csv(StringIO(text), dtype={"label": str, "predicted": str}, keep_default_na=False)


def _rank(run: "MlflowRun") -> tuple[float, float]:
    return rank(run.data.metrics["best/valid_accuracy"], run.data.metrics["best/valid_loss"])


def _data(run: "MlflowRun") -> dict[str, str]:
    """Return name and digest of the dataset of each context."""
    assert run.inputs is not None  # the stages log them
    return {
        entry.tags[0].value: f"{entry.dataset.name} {entry.dataset.digest[:8]}" for entry in run.inputs.dataset_inputs
    }

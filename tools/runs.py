"""Runs as MLflow holds them, found by what people call them."""

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import InputError
from stages.tracking.result import EVALUATION_TAG
from stages.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluated run."""

    id: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    data: dict[str, str]  # name and digest of the dataset of each context: training, validation, testing
    patch: str  # what differed from the commit
    model: str  # models:/<id>
    predictions: pd.DataFrame  # one row a test image: index, label, predicted, probabilities

    def right(self) -> npt.NDArray[np.bool_]:
        """Return whether each test image was classified correctly."""
        return (self.predictions["label"] == self.predictions["predicted"]).to_numpy()


class Runs:
    """The runs in the store of the stages, for reading. Raises InputError if it cannot be reached."""

    def __init__(self) -> None:
        opened = Store.from_environment()
        self.uri = opened.uri
        if opened.database and not opened.database.exists():
            raise InputError(f"there are no runs yet, since there is no {opened.database}: make repro comes first")
        try:
            self.client = opened.client()
        except Exception as error:
            raise InputError(f"MLflow at {self.uri} cannot be read: {type(error).__name__}: {error}") from error
        self.experiment_id = opened.experiment_id

    def model_version(self, name: str, alias: str) -> "ModelVersion | None":
        """Return the registered model's version with this alias, None if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise InputError(f"the registry in {self.uri} cannot be read: {error}") from error

    def find(self, name: str) -> EvaluatedRun:
        """Return the evaluated run with this id or name, the latest of several.

        "best" is the best by validation of those that were validated on the same images as the latest run. Raises
        InputError if there is none, naming those that there are.
        """
        evaluated = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{EVALUATION_TAG}` != ''",
            max_results=50_000,
            order_by=["start_time DESC"],
        )
        if name == "best" and evaluated:
            images = _data(evaluated[0])["validation"]
            return self._read(
                max(
                    (run for run in evaluated if _data(run)["validation"] == images),
                    key=lambda run: (run.data.metrics["best/valid_accuracy"], -run.data.metrics["best/valid_loss"]),
                )
            )
        for run in evaluated:
            if name in (run.info.run_id, run.info.run_name):
                return self._read(run)
        names = list(dict.fromkeys(str(run.info.run_name) for run in evaluated))
        known = ", ".join(["best", *names[:20]]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise InputError(f"no evaluated run is called {name!r} in {self.uri}; there are: {known}")

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
            predictions=table_of(load_text(f"{run.info.artifact_uri}/plots/predictions.csv")),
        )


def table_of(predictions: str) -> pd.DataFrame:
    """Return the table of a predictions.csv. Its classes are text: pandas would take NA for none, and 01 for 1."""
    return pd.read_csv(StringIO(predictions), dtype={"label": str, "predicted": str}, keep_default_na=False)


def _data(run: "MlflowRun") -> dict[str, str]:
    """Return name and digest of the dataset of each context."""
    assert run.inputs is not None  # the stages log them
    return {
        entry.tags[0].value: f"{entry.dataset.name} {entry.dataset.digest[:8]}" for entry in run.inputs.dataset_inputs
    }

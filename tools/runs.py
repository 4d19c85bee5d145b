"""Runs as MLflow holds them, found by what people call them."""

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import InputError, listed
from stages.base.params import load_params
from stages.tracking.result import EVALUATION_TAG
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker
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
        self.uri = store.uri
        if store.database and not store.database.exists():
            raise InputError(f"there are no runs yet, since there is no {store.database}: make repro comes first")
        try:
            self.client = store.client()
        except Exception as error:
            raise InputError(f"MLflow at {self.uri} cannot be read: {type(error).__name__}: {error}") from error
        self.experiment_id = store.experiment_id

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
            raise InputError(f"the registry in {self.uri} cannot be read: {error}") from error

    def find(self, name: str) -> EvaluatedRun:
        """Return the evaluated run with this id or name, the latest of several.

        "best" is the best by validation of those that were validated on the same images as the latest run. Raises
        InputError if there is none, naming those that there are.
        """
        evaluated = self.client.search_runs(
            [self.experiment_id], f"tags.`{EVALUATION_TAG}` != ''", max_results=50_000, order_by=["start_time DESC"]
        )
        if name == "best" and evaluated:
            images = _data(evaluated[0])["validation"]
            return self._read(max((run for run in evaluated if _data(run)["validation"] == images), key=_rank))
        for run in evaluated:
            if name in (run.info.run_id, run.info.run_name):
                return self._read(run)
        known = listed(["best", *dict.fromkeys(run.info.run_name for run in evaluated)])
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
            predictions=read_predictions(load_text(f"{run.info.artifact_uri}/plots/predictions.csv")),
        )


def read_predictions(text: str) -> pd.DataFrame:
    """Return the table of a predictions.csv. Its classes are text: pandas would take NA for none, and 01 for 1."""
    return pd.read_csv(StringIO(text), dtype={"label": str, "predicted": str}, keep_default_na=False)


def _rank(run: "MlflowRun") -> tuple[float, float]:
    return rank(run.data.metrics["best/valid_accuracy"], run.data.metrics["best/valid_loss"])


def _data(run: "MlflowRun") -> dict[str, str]:
    """Return name and digest of the dataset of each context."""
    assert run.inputs is not None  # the stages log them
    return {
        entry.tags[0].value: f"{entry.dataset.name} {entry.dataset.digest[:8]}" for entry in run.inputs.dataset_inputs
    }


class SweepRuns:
    """The runs of a sweep's experiments. Where the store fails, it warns once and does nothing from then on."""

    def __init__(self, sweep: str, baseline: str, copies: Path) -> None:
        self._tracker = Tracker.from_environment(load_params())
        self.uri = self._tracker.store.uri
        # Others may have a sweep of the same name in the same store.
        self._ours = f"tags.sweep = '{sweep}' and tags.`dvc.baseline_rev` = '{baseline}'"
        self._here = f"tags.directory LIKE '{copies.resolve()}/%'"
        self._seen: dict[str, int] = {}  # number of epochs taken note of, by run id
        with self._tracker.spared():
            self._tracker.client()  # makes the store, before many processes want it at once

    def _find(self, filters: str, status: str, name: str = "") -> "list[MlflowRun]":
        filters = f"{filters} and attributes.status = '{status}'"
        if name:
            filters += f" and tags.`dvc.exp_name` = '{name}'"
        client = self._tracker.client()
        return list(client.search_runs([self._tracker.store.experiment_id], filters, max_results=50_000))

    def close_running(self, name: str = "") -> None:
        """Mark runs as KILLED that say they are running, of the experiment `name` or of all; none of them is."""
        with self._tracker.spared():
            for run in self._find(self._here, "RUNNING", name):
                self._tracker.client().set_terminated(run.info.run_id, "KILLED")

    def evaluated(self) -> dict[str, str]:
        """Return the ids of the evaluated runs by the names of their experiments."""
        with self._tracker.spared():
            runs = [run for run in self._find(self._ours, "FINISHED") if EVALUATION_TAG in run.data.tags]
            return {run.data.tags.get("dvc.exp_name", ""): run.info.run_id for run in runs}
        return {}

    def new_epochs(self, name: str) -> list[tuple[int, float]]:
        """Return epoch and validation accuracy of each epoch of a running experiment that was not returned before."""
        epochs: list[tuple[int, float]] = []
        with self._tracker.spared():
            for run in self._find(self._here, "RUNNING", name):
                history = self._tracker.client().get_metric_history(run.info.run_id, "valid/accuracy")
                new = history[self._seen.get(run.info.run_id, 0) :]
                self._seen[run.info.run_id] = len(history)
                epochs += [(metric.step, metric.value) for metric in new]
        return epochs

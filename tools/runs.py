"""Runs as MLflow holds them, found by what people call them."""

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import pandas as pd

from stages import params
from stages.command import InputError
from stages.tracking import EVALUATION, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Result:
    """An evaluated run."""

    id: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    data: dict[str, str]  # name and digest of the dataset of each context: training, validation, testing
    patch: str  # what differed from the commit
    predictions: pd.DataFrame  # one row a test image: index, label, predicted, probabilities


class Store:
    """The store of the stages, for reading. Raises InputError if it cannot be reached."""

    def __init__(self) -> None:
        self._tracker = Tracker.from_environment(params.load())
        try:
            self.client = self._tracker.client()
        except Exception as error:
            raise InputError(
                f"MLflow at {self._tracker.uri} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def find(self, name: str) -> Result:
        """Return the evaluated run with this id or name, the latest of several; "best" is the best by validation.

        Raises InputError if there is none, naming those that there are.
        """
        evaluated = self.client.search_runs(
            [self._tracker.experiment_id], f"tags.`{EVALUATION}` != ''", max_results=1000, order_by=["start_time DESC"]
        )
        if name == "best" and evaluated:
            return self._read(max(evaluated, key=lambda run: run.data.metrics["best/valid_accuracy"]))
        for run in evaluated:
            if name in (run.info.run_id, run.info.run_name):
                return self._read(run)
        names = list(dict.fromkeys(str(run.info.run_name) for run in evaluated))
        known = ", ".join(["best", *names[:20]]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise InputError(f"no evaluated run is called {name!r} in {self._tracker.uri}; there are: {known}")

    def _read(self, run: "MlflowRun") -> Result:
        from mlflow.artifacts import load_text

        assert run.inputs is not None  # the stages log them
        files = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        return Result(
            id=run.info.run_id,
            name=run.info.run_name,
            params=run.data.params,
            metrics=run.data.metrics,
            tags=run.data.tags,
            data={
                entry.tags[0].value: f"{entry.dataset.name} {entry.dataset.digest[:8]}"
                for entry in run.inputs.dataset_inputs
            },
            patch=load_text(f"{run.info.artifact_uri}/git.patch") if "git.patch" in files else "",
            predictions=pd.read_csv(StringIO(load_text(f"{run.info.artifact_uri}/plots/predictions.csv"))),
        )

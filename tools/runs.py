"""Runs as MLflow holds them, found by what people call them."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from stages.base.errors import InputError, listed
from stages.base.files import read_csv, sha256
from stages.base.text import shown_url
from stages.tracking.datasets import dataset_record
from stages.tracking.params import given
from stages.tracking.result import EVALUATION_TAG, PATCH, RECORD, RECORD_TAG, TIDIED_TAG, USED, WEIGHTS, WEIGHTS_TAG
from stages.tracking.run import close, left_running
from stages.tracking.store import Store
from stages.training.selection import rank

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

    from stages.batches.prepared import DatasetInfo

UNLOGGED = "python -m tools.sync adds what DVC has, taken from its cache or pulled, and MLflow has not"

RUN_ID = re.compile("[0-9a-f]{32}")
PREDICTIONS = "plots/predictions.csv"
COLUMNS = ["index", "source", "label", "predicted"]  # of predictions.csv, before each class's probability


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that was trained and evaluated, as tools read it."""

    id: str
    name: str  # DVC's experiment, or the abbreviated commit
    params: dict[str, str]  # by their dotted names, as MLflow keeps them: text as it is, the rest as JSON
    used: dict[str, str]  # likewise, what net, loss, optimizer and schedule were made with, all defaults included
    metrics: dict[str, float]
    tags: dict[str, str]
    data: dict[str, str]  # name and digest of the dataset by its context: training, validation, testing
    link: str  # to its page in MLflow
    patch: str  # what differed from the commit, as git prints it
    model: str  # MLflow's address of it: models:/<id>
    predictions: "pd.DataFrame"  # a row for each test image: index, source, label, predicted, each class's probability
    remark: str  # which other runs could have been meant by the name that it was found by

    @property
    def loss(self) -> str:
        """Name and arguments of the loss function that it was trained with."""
        return loss_of(self.params)

    @property
    def gives_probabilities(self) -> bool:
        """Whether its "probabilities" are ones, and so have a calibration error: see losses.py."""
        from stages.training.losses import LOSSES  # with torch, which the pages need not wait for

        loss = LOSSES.get(self.params.get("train.loss.name", ""))
        return loss is not None and loss.gives_probabilities

    def has_images(self, data: "DatasetInfo", split: str) -> bool:
        """Return whether a split of the prepared set is what it was trained, validated or tested on."""
        record = dataset_record(data, split)
        return self.data[record["context"]] == f"{record['name']} {record['digest']}"

    def right(self) -> "npt.NDArray[np.bool_]":
        """Return for each test image whether it was classified correctly."""
        return (self.predictions["label"] == self.predictions["predicted"]).to_numpy()

    def shares(self) -> "npt.NDArray[np.float64]":
        """Return for each test image the highest softmax of its scores."""
        return self.predictions.iloc[:, 4:].max(axis=1).to_numpy("float64")


class Runs:
    """The runs in the store of the stages, for reading."""

    def __init__(self) -> None:
        """Connect to the store, and end the runs in it whose processes were killed.

        Raises InputError if it cannot be reached, or does not exist yet.
        """
        store = Store.from_environment()
        self.uri, self.name = store.uri, store.name
        if store.database and not store.database.exists():
            raise InputError(
                f"there are no runs yet, since there is no {store.database}: make repro comes first; {UNLOGGED}"
            )
        self.store = store
        with self.reading():
            self.client = store.client()
        self.experiment_id = store.experiment_id
        with suppress(Exception):  # a store that can only be read
            for run in left_running(store):
                close(store, run)

    @property
    def address(self) -> str:
        """Where a browser finds MLflow's pages of this store; those of a local one while `make ui` shows them."""
        remote = self.uri.startswith(("http:", "https:"))
        return shown_url(self.uri).replace("***@", "").rstrip("/") if remote else "http://127.0.0.1:5000"

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

    def meant(self, name: str) -> EvaluatedRun:
        """Return the run that a name stands for: as `find` takes it, or of a model of the registry, MODEL@ALIAS."""
        return self.of_model(name) if "@" in name else self.find(name)

    def weights(self, run: EvaluatedRun, folder: Path) -> Path:
        """Copy the weights of a run into `folder`, and return their path.

        Raises InputError if it has none, or others than it was evaluated with.
        """
        with self.reading():
            files = self.client.list_artifacts(run.id, WEIGHTS)
            if not files and TIDIED_TAG in run.tags:
                raise InputError(
                    f"the weights of {run.name} went with tools.tidy on {run.tags[TIDIED_TAG]};"
                    f" python -m tools.rebuild {run.id} brings them back"
                )
            if not files:
                raise InputError(f"the run {run.name} was logged without its weights; python -m tools.sync adds them")
            path = Path(self.client.download_artifacts(run.id, files[0].path, str(folder)))
        if sha256(path) != run.tags[WEIGHTS_TAG]:
            raise InputError(f"the run {run.name} has other weights in {self.name} than it was evaluated with")
        return path

    def comparing(self, runs: Sequence[EvaluatedRun]) -> str:
        """Return the link to MLflow's page that compares runs."""
        ids = quote(json.dumps([run.id for run in runs], separators=(",", ":")))
        return f"{self.address}/#/compare-runs?runs={ids}&experiments={quote(json.dumps([self.experiment_id]))}"

    def artifact(self, run: EvaluatedRun, path: str, folder: Path) -> Path | None:
        """Copy a file of a run into `folder`, and return its path; None if the run has no such file."""
        folder_there = path.rpartition("/")[0]  # "" and not ".", of which S3 knows nothing
        with self.reading():
            if path not in {file.path for file in self.client.list_artifacts(run.id, folder_there)}:
                return None
            return Path(self.client.download_artifacts(run.id, path, str(folder)))

    def curve(self, run: EvaluatedRun, metric: str) -> dict[int, float]:
        """Return the values of a metric by their epochs."""
        with self.reading():
            values = {point.step: point.value for point in self.client.get_metric_history(run.id, metric)}
        return dict(sorted(values.items()))

    def evaluated(self) -> "list[MlflowRun]":
        """Return all runs that are trained and evaluated, the latest first."""
        with self.reading():
            return self.store.search(having=[EVALUATION_TAG])

    def find(self, name: str) -> EvaluatedRun:
        """Return the evaluated run with this id or name. Raises what `look_up` and `read` do."""
        return self.read(*self.look_up(name))

    def look_up(self, name: str) -> "tuple[MlflowRun, str]":
        """Return the evaluated run with this id or name, the latest of several, and which others it could be.

        "best" is the best by validation of those that were validated on the same images as the latest run, one without
        a prepare.limit if there is any. Raises InputError if there is none, naming those that there are.
        """
        # Before all runs are read, of which there may be thousands.
        found = [] if name == "best" else self._called(name)
        evaluated = [] if found else self.evaluated()
        if name == "best" and evaluated:
            whole = [run for run in evaluated if run.data.params.get("prepare.limit", "null") == "null"]
            images = datasets_of((whole or evaluated)[0])["validation"]
            candidates = [run for run in evaluated if datasets_of(run)["validation"] == images]
            best = max(candidates, key=rank_of)
            equal = listed(named(run) for run in candidates if run is not best and _ties(run, best))
            return best, f"best is {named(best)}; as good by validation: {equal}" if equal else ""
        if found:
            earlier = listed(run.info.run_id[:8] for run in found[1:])
            return found[0], f"{named(found[0])} is the latest {name}; earlier: {earlier}" if earlier else ""
        known = listed(["best", *dict.fromkeys(run.info.run_name for run in evaluated)])
        raise InputError(f"no evaluated run is called {name!r} in {self.name}; there are: {known}; {UNLOGGED}")

    def _called(self, name: str) -> "list[MlflowRun]":
        """Return the evaluated runs with this id or name, the latest first."""
        with self.reading():
            of_id = self.store.search(run_id=name, having=[EVALUATION_TAG]) if RUN_ID.fullmatch(name) else []
            return of_id or self.store.search(tags={"mlflow.runName": name}, having=[EVALUATION_TAG])

    def read(self, run: "MlflowRun", remark: str = "") -> EvaluatedRun:
        """Return an evaluated run as tools read it. Raises InputError if it is of later code, or lacks files."""
        with self.reading():
            return self._read(run, remark)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise InputError for whatever is wrong with the store, or with where its artifacts are."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"MLflow at {self.name} cannot be read: {self.store.why(error)}") from error

    def _read(self, run: "MlflowRun", remark: str) -> EvaluatedRun:
        from mlflow.artifacts import load_text

        if (version := int(run.data.tags.get(RECORD_TAG, RECORD))) > RECORD:
            raise InputError(
                f"the run {named(run)} is of version {version}; this code reads up to {RECORD}: take the later code"
            )
        models = run.outputs.model_outputs if run.outputs else []
        files = {file.path for folder in ("", "plots") for file in self.client.list_artifacts(run.info.run_id, folder)}
        if not models or PREDICTIONS not in files:
            lacks = f"lacks {PREDICTIONS}, which python -m tools.sync adds" if models else "has no model"
            raise InputError(f"the run {named(run)} in {self.name} {lacks}")
        return EvaluatedRun(
            id=run.info.run_id,
            name=run.info.run_name,
            params=given(run),
            used={name.removeprefix(USED): value for name, value in run.data.params.items() if name.startswith(USED)},
            metrics=run.data.metrics,
            tags=run.data.tags,
            data=datasets_of(run),
            link=f"{self.address}/#/experiments/{self.experiment_id}/runs/{quote(run.info.run_id)}",
            patch=load_text(f"{run.info.artifact_uri}/{PATCH}") if PATCH in files else "",
            model=f"models:/{models[0].model_id}",
            predictions=read_predictions(load_text(f"{run.info.artifact_uri}/{PREDICTIONS}")),
            remark=remark,
        )


def read_predictions(text: str) -> "pd.DataFrame":
    """Return the table of a predictions.csv. Texts are read as such: pandas would take NA for none, and 01 for 1."""
    import pandas as pd

    table = read_csv(StringIO(text), dtype=str, keep_default_na=False)
    if table.columns[1] != "source":  # of an earlier version
        table.insert(1, "source", "images.npy/" + table["index"], allow_duplicates=True)
    # By their places: an earlier version had two columns of one name where a class was called as one of these.
    texts, probabilities = table.iloc[:, :4].set_axis(COLUMNS, axis=1), table.iloc[:, 4:].astype(float)
    return pd.concat([texts.astype({"index": int}), probabilities], axis=1)


def loss_of(params: dict[str, str]) -> str:
    """Return name and arguments of the loss function that a run's params name."""
    name = params.get("train.loss.name", "-")
    prefix = f"train.loss.arguments.{name}."
    given = {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
    return ", ".join([name, *(f"{key}: {value}" for key, value in sorted(given.items()))])


def named(run: "MlflowRun") -> str:
    """Return a run's name, and what tells it from others of that name."""
    return f"{run.info.run_name} ({run.info.run_id[:8]})"


def _ties(run: "MlflowRun", best: "MlflowRun") -> bool:
    """Return whether a run is as good as the best; of different functions no loss is lower than the other."""
    comparable = loss_of(run.data.params) == loss_of(best.data.params)
    return rank_of(run) == rank_of(best) if comparable else rank_of(run)[0] == rank_of(best)[0]


def rank_of(run: "MlflowRun") -> tuple[float, float]:
    """Return what orders evaluated runs by validation, the best highest."""
    return rank(run.data.metrics["best/valid_accuracy"], run.data.metrics["best/valid_loss"])


def datasets_of(run: "MlflowRun") -> dict[str, str]:
    """Return name and digest of the dataset of each context."""
    assert run.inputs is not None  # the stages log them
    return {entry.tags[0].value: f"{entry.dataset.name} {entry.dataset.digest}" for entry in run.inputs.dataset_inputs}

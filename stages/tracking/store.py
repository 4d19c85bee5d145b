"""MLflow's store: where it is, how it is opened, and how data sets and models are logged to it."""

import json
import logging
import os
import re
import shlex
import sqlite3
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from stages.base.errors import InputError
from stages.base.experiment import main_repository
from stages.base.files import reserve
from stages.base.text import shown_url
from stages.batches.prepared import DatasetInfo
from stages.nets.weights import Description
from stages.tracking import colours, sqlite
from stages.tracking.search import search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Run

EXPERIMENT = "repronet"

# By default each call to a dead server would take minutes, and MLflow would send telemetry.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that it may hold
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}


class Store:
    """One experiment of one store."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self.connection: MlflowClient | None = None
        self.experiment_id = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Store":
        """Return the store of MLFLOW_TRACKING_URI, by default mlflow.db in the main repository."""
        root = main_repository(environment)
        given = environment.get("MLFLOW_TRACKING_URI")
        uri = sqlite.absolute(given, root) if given else sqlite.address(root / "mlflow.db")
        return cls(uri, environment.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)

    @property
    def database(self) -> Path | None:
        """The file that a SQLite store is."""
        return sqlite.database_of(self.uri)

    @property
    def name(self) -> str:
        """What a message calls it: its URI, without what is secret in it."""
        return shown_url(self.uri)

    def why(self, error: Exception) -> str:
        """Return what is wrong with the store in one line, without what is secret.

        It is what the database or the connection said, where that is known: around it stand SQL and advice for others.
        """
        cause: BaseException | None = error
        while cause and not isinstance(cause, (InputError, OSError, sqlite3.Error)):
            cause = cause.__cause__ or cause.__context__
        cause = cause or error
        text = str(cause).strip()
        if password := urlsplit(self.uri).password:
            text = text.replace(password, "***")
        line = shown_url(text).split("\n", 1)[0]
        return line if isinstance(cause, InputError) else f"{type(cause).__name__}: {line}"

    def exists(self) -> bool:
        """Return whether the experiment is there, and create nothing. Raises whatever is wrong with the store."""
        if self.database is not None:
            if not self.database.exists():
                return False
            sqlite.check(self.database)
            sqlite.follow(self.database, self.experiment)
        set_up_mlflow(self.uri)
        from mlflow import MlflowClient

        found = MlflowClient(self.uri).get_experiment_by_name(self.experiment)
        if found is not None:
            self._check(found)
        return found is not None

    def client(self) -> "MlflowClient":
        """Return the store's client, connecting first, which creates what is missing. Raises whatever is wrong."""
        if self.connection is None:
            set_up_mlflow(self.uri)
            from mlflow import MlflowClient

            self.experiment_id = self._open()
            self.connection = MlflowClient(self.uri)
        return self.connection

    def search(self, **conditions: Any) -> "list[Run]":
        """Return runs of the experiment, see search.py. Raises whatever is wrong with the store."""
        return search(self.client(), self.experiment_id, **conditions)

    def create_run(self, name: str, tags: Mapping[str, str], start_time: int | None) -> "Run":
        """Create a run, in a colour that the latest others do not have. Raises whatever is wrong with the store.

        `start_time` is in ms since 1970, None: now.
        """
        client = self.client()
        # Of processes that start at once each sees the runs of those before it.
        with sqlite.lock_of(self.database, "-colours") if self.database else nullcontext():
            others = self.search(at_most=len(colours.COLOURS) - 1)
            colour = colours.least_used(run.data.tags.get(colours.TAG, "") for run in others)
            return client.create_run(self.experiment_id, start_time, {colours.TAG: colour, **tags}, name)

    def _open(self) -> str:
        """Return the id of the experiment; it and the store are created where they are missing."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        location = None  # a server chooses where its artifacts are
        if database := self.database:
            location = sqlite.place(sqlite.artifacts_of(database))
            sqlite.create(database, lambda uri: MlflowClient(uri).create_experiment(self.experiment, location))
            sqlite.check(database)
            sqlite.follow(database, self.experiment)

        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment, location))
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        self._check(found)
        return str(found.experiment_id)

    def _check(self, experiment: "Experiment") -> None:
        """Raise InputError, with what mends it, if the experiment was deleted: nothing can be read or written then."""
        if experiment.lifecycle_stage == "deleted":
            command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise InputError(
                f"the experiment {self.experiment!r} in {self.name} was deleted; this brings it back, with its runs:"
                f" MLFLOW_TRACKING_URI={shlex.quote(self.name)} {command}"
            )


def set_up_mlflow(uri: str) -> None:
    """Import MLflow, which reads its settings then, and let it use the store at `uri`."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # 1 s, which --help and wrong input need not wait for

    # What fails is raised as well, and said by us, once: they would print it with a traceback, and SQL.
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "%" in mlflow.__file__:
        _escape_place_of_migrations()
    mlflow.set_tracking_uri(uri)


@cache
def _escape_place_of_migrations() -> None:
    """Escape what MLflow does not: in the path of its migrations, where a % of alembic's settings refers to another."""
    from alembic.config import Config

    plain = Config.set_main_option

    def escaped(self: Config, name: str, value: str) -> None:
        plain(self, name, value.replace("%", "%%") if name == "script_location" else value)

    Config.set_main_option = escaped  # type: ignore[method-assign]


def dataset(data: DatasetInfo, split: str) -> "DatasetInput":
    """Return a split as MLflow's record of a dataset, with the digest of all its images and labels."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = {"train": "training", "valid": "validation", "test": "testing"}[split]
    record = Dataset(
        name=f"{data.source} {split}",
        digest=data.sha256[split][:32],  # MLflow takes 36 characters at most
        source_type="local",
        source=json.dumps({"uri": "data/prepared"}),
        profile=json.dumps({"num_rows": data.sizes[split], "sha256": data.sha256[split]}),
    )
    return DatasetInput(record, [InputTag("mlflow.data.context", context)])


def log_model(
    run_id: str, description: Description, net: torch.nn.Module, data: DatasetInfo, model_id: str | None = None
) -> str:
    """Log the classifier under the name of its run and return its id; or the files of the one with this `model_id`.

    It takes uint8 images, (n, h, w) or (n, 3, h, w), normalises them itself, and gives (n, n_classes). It is exported
    as a graph (pt2) that needs no code of ours and loads with pickle forbidden. Its metadata say what it takes and what
    it gives: the classes in the order of the scores.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    image = data.image_shape
    # Signature and requirements are given, since to infer them MLflow would load the model again in a new process.
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *image))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data.classes)))]),
    )
    with NamedTemporaryFile() as file:  # where there is no room for the graph, torch would end the process
        reserve(Path(file.name), 2 * sum(tensor.nbytes for tensor in net.state_dict().values()) + (4 << 20))
    name = mlflow.MlflowClient().get_run(run_id).info.run_name or "model"
    # With the run active, MLflow would tie to it once more a model that it has.
    with nullcontext() if model_id else mlflow.start_run(run_id=run_id):
        info = mlflow.pytorch.log_model(
            description.classifier(net).cpu().eval(),
            name=re.sub(r"""[/:.%"']""", "_", name),  # of models MLflow refuses these
            model_id=model_id,
            serialization_format="pt2",
            signature=signature,
            pip_requirements=[f"torch=={version('torch').split('+')[0]}", f"numpy=={version('numpy')}"],
            input_example=np.zeros((2, *image), np.uint8),  # of one image, the batch size would be fixed to 1
            metadata={
                "classes": data.classes,
                "channels": data.channels,
                "image_size": data.image_size,
                "mean": description.mean,
                "std": description.std,
                "transforms": description.transforms,
                "net": description.net,
            },
        )
    return str(info.model_id)

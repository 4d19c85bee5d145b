"""MLflow's store: where it is, and how it is opened."""

import logging
import os
import shlex
import sqlite3
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stages.base.errors import InputError
from stages.base.experiment import main_repository
from stages.base.text import shown_url
from stages.tracking import colours, sqlite
from stages.tracking.search import search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

EXPERIMENT = "repronet"
DATABASES = ("postgresql", "mysql", "mssql")  # of MLflow's server

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
        """Return the store of MLFLOW_TRACKING_URI, by default mlflow.db in the main repository.

        Raises InputError for a server's database: each machine would keep the files of its runs for itself.
        """
        root = main_repository(environment)
        given = environment.get("MLFLOW_TRACKING_URI")
        if given and given.split(":")[0].split("+")[0].lower() in DATABASES:
            raise InputError(
                f"MLFLOW_TRACKING_URI: {shown_url(given)} is for MLflow's server (docs/sharing.md); accepted: that"
                " server's address, such as http://127.0.0.1:5000, or sqlite:///FILE"
            )
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

"""MLflow, the mirror of DVC's record: one training is one run, which evaluate completes. Only this file imports mlflow.

Tracking never costs a training: when the store fails, a Tracker warns once and is off from then on.
"""

import io
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from ruamel.yaml import YAML

from stages import circumstances
from stages.batches import Prepared
from stages.outputs import replacing, sha256
from stages.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

EXPERIMENT = "repronet"
# Tags that tie a run to what it made, by which it is found again.
WEIGHTS, EVALUATION = "weights.sha256", "evaluation.sha256"
FLUSH_SECONDS = 2.0  # metrics wait to be written together: writing one takes longer than a step

# By default MLflow would let a dead server stall each call for minutes, and report its use to its makers.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}


class Tracker:
    """One experiment of one store, and what this process tells of itself."""

    def __init__(self, uri: str, experiment: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        self.uri, self.experiment, self.tags = uri, experiment, tags
        # As MLflow keeps them: text as it is, the rest as JSON.
        self.params = {
            key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in params.items()
        }
        self._off = self._spared = False
        self.connection: MlflowClient | None = None
        self.experiment_id = ""

    @classmethod
    def from_environment(cls, params: Params, environment: Mapping[str, str] = os.environ) -> "Tracker":
        """Return the tracker of MLFLOW_TRACKING_URI, by default of mlflow.db in the main repository.

        DVC runs experiments in other directories, and deletes those; DVC_ROOT always names the main repository.
        """
        root = Path(environment.get("DVC_ROOT", ".")).resolve()
        uri = environment.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        if uri.startswith("sqlite:///"):
            uri = f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
        experiment = environment.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        return cls(uri, experiment, params.flat(), circumstances.of_process(environment))

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Keep an error of the store from the caller: warn of the first one, and switch tracking off.

        Of nested ones the outermost does so: what fails inside of a larger piece of work ends all of it.
        """
        if self._spared:
            yield
            return
        self._spared = True
        try:
            yield
        except Exception as error:
            if not self._off:
                print(
                    f"warning: MLflow at {self.uri} failed, so this run is missing or incomplete there; the results are"
                    f" not affected. {type(error).__name__}: {error}",
                    file=sys.stderr,
                )
            self._off = True
        finally:
            self._spared = False

    def client(self) -> "MlflowClient":
        """Return the store's client, connecting first. Raises whatever is wrong with it: call this within `spared`."""
        if self._off:
            raise RuntimeError("tracking is off")
        if self.connection is None:
            for name, value in SETTINGS.items():
                os.environ.setdefault(name, value)
            import mlflow  # 1 s, which --help and wrong input need not wait for

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
            mlflow.set_tracking_uri(self.uri)
            self.experiment_id = open_store(self.uri, self.experiment)
            self.connection = mlflow.MlflowClient(self.uri)
        return self.connection

    @contextmanager
    def training(self, data: Prepared, device: torch.device) -> Iterator["Run"]:
        """Yield a new run; it ends FINISHED, KILLED after Ctrl-C or SIGTERM, or FAILED with the error noted."""
        run = self._start(data, circumstances.of_computation(device))
        try:
            yield run
        except BaseException as error:
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", note=str(error))
            raise
        run.end("FINISHED")

    def _start(self, data: Prepared, tags: dict[str, str]) -> "Run":
        run = Run(self, "")
        with self.spared():
            client = self.client()  # before anything else of mlflow, which reads its settings when it is imported
            from mlflow.entities import Param

            name = self.tags.get("dvc.exp_name") or self.tags.get("mlflow.source.git.commit", "no commit")[:9]
            run.id = client.create_run(self.experiment_id, run_name=name, tags=self.tags | tags).info.run_id
            with run.ending("FAILED"):
                client.log_batch(run.id, params=[Param(key, value) for key, value in self.params.items()])
                client.log_inputs(run.id, [dataset(data, split) for split in ("train", "valid")])
                if patch := circumstances.patch():
                    with TemporaryDirectory() as folder:
                        (Path(folder) / "git.patch").write_bytes(patch)
                        client.log_artifact(run.id, f"{folder}/git.patch")
        return run

    def evaluated(
        self,
        data: Prepared,
        classifier: torch.nn.Module,
        weights: Path,
        results: Path,
        plots: Path,
        metrics: dict[str, float],
        history: list[dict[str, float]],
    ) -> None:
        """Complete the run of the training that made `weights` with `metrics`, the model `classifier` and the files.

        That is the latest run of these weights and params in the same DVC experiment that has not been evaluated: no
        evaluation is overwritten. Where there is none, since this is another evaluation, or since DVC took the weights
        from its cache, a new run is made of `history`, one row an epoch.
        """
        with self.spared():
            client = self.client()
            made = {WEIGHTS: sha256(weights), EVALUATION: sha256(results, *sorted(plots.rglob("*.*")))}
            run_id = self._to_complete(made)
            if run_id is None:
                return
            # Where it fails from here on, a trained run stays as it was, to be completed by the next evaluation.
            run, status_on_error = Run(self, run_id), "FINISHED"
            if run_id == "":
                run = self._start(data, {WEIGHTS: made[WEIGHTS], "training": "not repeated for this run"})
                status_on_error = "FAILED"
            with run.ending(status_on_error):
                for row in history if run_id == "" else []:
                    run.log_epoch(row)
                client.log_inputs(run.id, [dataset(data, "test")])
                run.log(metrics, model_id=log_model(run.id, classifier, data))
                for path in (Path("params.yaml"), Path("dvc.yaml"), results):
                    client.log_artifact(run.id, str(path))
                if lock := lock_without("evaluate"):
                    client.log_text(run.id, lock, "dvc.lock")
                client.log_artifacts(run.id, str(plots), "plots")
                run.flush()
                client.set_tag(run.id, EVALUATION, made[EVALUATION])
                run.end("FINISHED")

    def _to_complete(self, made: dict[str, str]) -> str | None:
        """Return the id of the run that this evaluation completes, "" if it needs a new one, None if it is recorded."""
        found = self.client().search_runs([self.experiment_id], f"tags.`{WEIGHTS}` = '{made[WEIGHTS]}'")  # latest first
        ours = [
            run
            for run in found
            if run.data.tags.get("dvc.exp_name") == self.tags.get("dvc.exp_name") and run.data.params == self.params
        ]
        waiting = [run for run in ours if EVALUATION not in run.data.tags and run.info.status == "FINISHED"]
        if waiting:
            # Another clone may have made the same weights in the same store: our own directory goes first.
            waiting.sort(key=lambda run: run.data.tags.get("directory") != self.tags["directory"])
            return str(waiting[0].info.run_id)
        return None if any(run.data.tags.get(EVALUATION) == made[EVALUATION] for run in ours) else ""


class Run:
    """A run to log to. Where the store has failed, its methods do nothing."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self.id = tracker, run_id
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, metrics: dict[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Log `metrics` at `step`; they may wait some seconds to be written together."""
        with self._tracker.spared():
            self._tracker.client()
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            self._waiting += [Metric(name, value, now, step, model_id) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: all but its "epoch", which is the step."""
        self.log({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))

    def flush(self) -> None:
        """Write what waits."""
        with self._tracker.spared():
            for start in range(0, len(self._waiting), 1000):  # as many as one call takes
                self._tracker.client().log_batch(self.id, metrics=self._waiting[start : start + 1000])
        self._waiting, self._flushed = [], time.monotonic()

    def trained(self, weights: Path) -> None:
        """Tie the run to the weights file that it made."""
        with self._tracker.spared():
            self._tracker.client().set_tag(self.id, WEIGHTS, sha256(weights))

    def end(self, status: str, note: str = "") -> None:
        """End as FINISHED, FAILED or KILLED; `note` is shown as the run's description."""
        with self._tracker.spared(), self.ending("FAILED"):
            self.flush()
            if note:
                self._tracker.client().set_tag(self.id, "mlflow.note.content", note)
            self._tracker.client().set_terminated(self.id, status)

    @contextmanager
    def ending(self, status: str) -> Iterator[None]:
        """Try to end the run with this status if what is done within fails, lest it seem to be RUNNING for ever."""
        try:
            yield
        except Exception:
            if self.id and self._tracker.connection:
                with suppress(Exception):
                    self._tracker.connection.set_terminated(self.id, status)
            raise


def open_store(uri: str, experiment: str) -> str:
    """Return the id of `experiment` in the store at `uri`; both are created where they are missing.

    Processes that meet a SQLite store which does not exist yet would race each other through its migrations and break
    it. Here the first one makes it, under a lock and another name, while the others wait.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    location = None  # a server chooses where its artifacts are
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        location = str(database.parent / "mlartifacts")
        if not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{database}.lock", timeout=60):
                if not database.exists():
                    with replacing(database) as partial:
                        MlflowClient(f"sqlite:///{partial}").create_experiment(experiment, location)

        with closing(sqlite3.connect(database)) as connection:
            connection.execute("select 1 from sqlite_master")  # fails at once where MLflow would try for minutes

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return str(client.create_experiment(experiment, location))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
    return str(found.experiment_id)


def dataset(data: Prepared, split: str) -> "DatasetInput":
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


def log_model(run_id: str, classifier: torch.nn.Module, data: Prepared) -> str:
    """Log `classifier`, which takes uint8 images (n, h, w) and gives scores (n, n_classes), and return its id.

    It is exported as a graph (pt2) that needs no code of ours and loads with pickle forbidden.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    image = (data.image_size, data.image_size)
    # Signature and requirements are given, since to infer them MLflow would load the model again in a new process.
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *image))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data.classes)))]),
    )
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pytorch.log_model(
            classifier.cpu().eval(),
            name="model",
            serialization_format="pt2",
            signature=signature,
            pip_requirements=[f"torch=={version('torch').split('+')[0]}", f"numpy=={version('numpy')}"],
            input_example=np.zeros((2, *image), np.uint8),  # of one image, the batch size would be fixed to 1
        )
    return str(info.model_id)


def lock_without(stage: str) -> str:
    """Return dvc.lock without the entry of `stage`: while that runs, DVC has not written its new entry yet.

    Where there is no dvc.lock, since a stage was run by hand, return "".
    """
    if not Path("dvc.lock").exists():
        return ""
    yaml = YAML()
    lock = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"))
    lock["stages"].pop(stage, None)
    text = io.StringIO()
    yaml.dump(lock, text)
    return text.getvalue()

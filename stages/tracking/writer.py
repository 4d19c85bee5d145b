"""What writes runs to a store: a new one for a training, and the evaluation that completes it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.batches.prepared import DatasetInfo
from stages.nets.weights import load_weights
from stages.tracking import provenance
from stages.tracking.environment import ARTIFACT
from stages.tracking.provenance import PROCESS_TAG, Provenance, has_ended
from stages.tracking.result import (
    CHECKPOINT_TAG,
    EVALUATION_TAG,
    NOTE_TAG,
    RECORD,
    RECORD_TAG,
    USED,
    WEIGHTS,
    WEIGHTS_TAG,
    ResultFiles,
)
from stages.tracking.run import ActiveRun, NoRun
from stages.tracking.store import Store, dataset, log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SPLITS = ("train", "valid", "test")
LONGEST = 6000  # characters of a param that MLflow keeps


class RunWriter:
    """Writes runs of the same params and the same provenance to a store. Its methods raise what goes wrong there."""

    def __init__(self, store: Store, params: dict[str, Any], origin: Provenance) -> None:
        self.store, self.provenance = store, origin
        self.params = as_logged(params)

    def start(
        self,
        data: DatasetInfo,
        used: dict[str, str],
        tags: dict[str, str],
        checkpoint: str = "",
        environment: dict[str, Any] | None = None,
    ) -> "ActiveRun":
        """Create a run with its params, the settings `used`, datasets, `environment`, and changes since the commit.

        If one was interrupted that has this `checkpoint`, it is taken up again.
        """
        client = self.store.client()
        tags = self.provenance.tags | provenance.of_writer() | tags
        tags |= {RECORD_TAG: str(RECORD)} | ({CHECKPOINT_TAG: checkpoint} if checkpoint else {})
        name = tags.get("dvc.exp_name") or tags.get("mlflow.source.git.commit", "no commit")[:9]
        if before := self._interrupted(checkpoint):
            run = self._taken_up(before, name, tags)
        else:
            created = self.store.create_run(name, tags, self.provenance.time)
            run = ActiveRun(client, created.info.run_id, self.provenance.time)
        with run.abandoned_on_error():
            self._describe(run.id, data, used)
            if environment:
                client.log_dict(run.id, environment, ARTIFACT)
        return run

    def _interrupted(self, checkpoint: str) -> "Run | None":
        """Return the latest run that was interrupted and has this checkpoint. Its process is gone: this one has it."""
        runs = self.store.search(tags={CHECKPOINT_TAG: checkpoint}) if checkpoint else []
        interrupted = ("KILLED", "RUNNING")
        for run in runs:
            if (run.info.status in interrupted or is_abandoned(run)) and WEIGHTS_TAG not in run.data.tags:
                return run
        return None

    def _taken_up(self, before: "Run", name: str, tags: dict[str, str]) -> "ActiveRun":
        """Let an interrupted run go on, as what it is now: the experiment may have another name this time."""
        client, run_id = self.store.client(), before.info.run_id
        from mlflow.entities import RunTag

        client.update_run(run_id, "RUNNING", name)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if NOTE_TAG in before.data.tags:
            client.delete_tag(run_id, NOTE_TAG)
        logged = {(key, point.step) for key in before.data.metrics for point in client.get_metric_history(run_id, key)}
        return ActiveRun(client, run_id, self.provenance.time, logged=logged)

    def _describe(self, run_id: str, data: DatasetInfo, used: dict[str, str]) -> None:
        """Log what is known before a training. Doing it twice changes nothing."""
        client = self.store.client()  # before anything else of mlflow, which reads its settings when it is imported
        from mlflow.entities import Param

        for params in (self.params, {f"{USED}{name}": value[:LONGEST] for name, value in used.items()}):
            client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])  # at most 100
        client.log_inputs(run_id, [dataset(data, split) for split in ("train", "valid")])
        self._log_origin(run_id, data)

    def evaluated(self, files: ResultFiles) -> None:
        """Complete the run of the training that made these weights.

        That is the latest run of these weights and params in the same DVC experiment that lacks an evaluation: none is
        overwritten. Where there is no such run, since this is another evaluation, or since DVC took the weights from
        its cache, a new one is made, unless the store failed during this training: then it is the run that began.
        """
        digests, tags = files.digests, self.provenance.tags
        own = {name: tags.get(name) for name in ("dvc.exp_name", "dvc.baseline_rev")}
        runs = [run for run in self.found(digests) if own == {name: run.data.tags.get(name) for name in own}]
        lacking = [run for run in runs if lacks_evaluation(run)]
        # Another clone may have made the same weights in the same store: our own directory goes first.
        lacking.sort(key=lambda run: run.data.tags.get("directory") != tags["directory"])
        if lacking:
            self.complete(files, lacking[0].info.run_id)
        elif not any(has_evaluation(run, digests) for run in runs):
            self.complete(files, self.begun(files))

    def found(self, digests: dict[str, str], deleted: bool = False) -> list["Run"]:
        """Return the runs of the weights with this digest and of the same params, the latest first."""
        runs = self.store.search(tags={WEIGHTS_TAG: digests[WEIGHTS_TAG]}, deleted=deleted)
        return [run for run in runs if given(run) == self.params]

    def begun(self, files: ResultFiles) -> str:
        """Return the id of the run that began the training of this result and was abandoned, "" if there is none.

        It is of the same experiment of DVC, or else of the same directory, and has the same params and data; the
        epochs that it has are this result's.
        """
        tags = self.provenance.tags
        ties = {name: tags[name] for name in ("dvc.exp_name", "dvc.baseline_rev") if name in tags}
        epochs = files.epochs()
        expected = {(name, int(row["epoch"])): value for row in epochs for name, value in row.items()}
        data = {entry.dataset.digest for entry in map(partial(dataset, DatasetInfo(files.prepared)), SPLITS)}
        for run in self.store.search(tags=ties or {"directory": tags.get("directory", str(Path.cwd()))}):
            if (
                is_abandoned(run)
                and WEIGHTS_TAG not in run.data.tags
                and (ties or "dvc.exp_name" not in run.data.tags)
                and given(run).items() <= self.params.items()
                and {entry.dataset.digest for entry in (run.inputs.dataset_inputs if run.inputs else [])} <= data
                and self._logged(run, epochs).items() <= expected.items()
            ):
                return str(run.info.run_id)
        return ""

    def complete(self, files: ResultFiles, run_id: str = "") -> str:
        """Write the evaluation to its run, or without an id the whole result to a new one. Return the run's id.

        A run that was abandoned gets all that it lacks. Raises InputError if weights or dataset.json are not as written
        today.
        """
        digests, data = files.digests, DatasetInfo(files.prepared)
        net, description = load_weights(files.weights)
        metrics, epochs = files.metrics(description), files.epochs()
        client = self.store.client()
        if run_id:
            begun = client.get_run(run_id)
            on_error = "FINISHED" if begun.info.status == "FINISHED" else "FAILED"
            run = ActiveRun(client, run_id, self.provenance.time, on_error)
        else:
            tags = {WEIGHTS_TAG: digests[WEIGHTS_TAG], "training": "not repeated for this run"}
            run = self.start(data, description.used, tags)
            begun = client.get_run(run.id)
        with run.abandoned_on_error():
            if begun.info.status != "FINISHED":
                if run_id:
                    self._describe(run.id, data, description.used)
                self._log_epochs(run, begun, epochs)
                run.tag(WEIGHTS_TAG, digests[WEIGHTS_TAG])
            client.log_inputs(run.id, [dataset(data, "test")])
            model = log_model(run.id, description, net, data, next(iter(models_of(begun)), None))
            if EVALUATION_TAG not in begun.data.tags:
                run.log(metrics, model_id=model)
            self._log_files(run.id, files)
            run.flush()
            run.tag(EVALUATION_TAG, digests[EVALUATION_TAG])
            run.end("FINISHED")
        return run.id

    def lacking(self, run_id: str, files: ResultFiles) -> list[str]:
        """Return what of a result's files is not in the artifacts of its run, or of its model: it was moved or removed.

        Earlier versions did not log the weights.
        """
        client = self.store.client()
        found = list(_artifacts(client, run_id))
        plots = [f"plots/{path.relative_to(files.plots)}" for path in sorted(files.plots.rglob("*.*"))]
        gone = [name for name in ("params.yaml", "dvc.yaml", files.results.name, *plots) if name not in found]
        if not any(name.startswith(f"{WEIGHTS}/") for name in found):
            gone.insert(0, WEIGHTS)
        return gone + ["model"] * bool(_lost_models(client, run_id))

    def put_back(self, run_id: str, files: ResultFiles) -> None:
        """Log the files of a result, and its model, to the run that lacks some; nothing else of it changes.

        Raises InputError if weights or dataset.json are not as written today.
        """
        data, (net, description) = DatasetInfo(files.prepared), load_weights(files.weights)
        for model_id in _lost_models(self.store.client(), run_id):
            log_model(run_id, description, net, data, model_id)
        self._log_origin(run_id, data)
        self._log_files(run_id, files)

    def _log_origin(self, run_id: str, data: DatasetInfo) -> None:
        """Log what prepare left out, and what differed from the commit."""
        client = self.store.client()
        if (rejected := data.folder / "rejected.csv").exists():
            client.log_artifact(run_id, str(rejected))
        if self.provenance.patch:
            with TemporaryDirectory() as folder:
                (Path(folder) / "git.patch").write_bytes(self.provenance.patch)
                client.log_artifact(run_id, f"{folder}/git.patch")

    def _log_files(self, run_id: str, files: ResultFiles) -> None:
        client, lock = self.store.client(), files.lock()
        # The weights are what our own tools load, where MLflow's model could bring code along.
        client.log_artifact(run_id, str(files.weights), WEIGHTS)
        for path in (files.root / "params.yaml", files.root / "dvc.yaml", files.results):
            client.log_artifact(run_id, str(path))
        if lock:
            client.log_text(run_id, lock, "dvc.lock")
        client.log_artifacts(run_id, str(files.plots), "plots")

    def _log_epochs(self, run: ActiveRun, begun: "Run", epochs: list[dict[str, float]]) -> None:
        """Log what a run does not have of its epochs."""
        logged = self._logged(begun, epochs)
        for row in epochs:
            step = int(row["epoch"])
            run.log({name: row[name] for name in row if name != "epoch" and (name, step) not in logged}, step)

    def _logged(self, run: "Run", epochs: list[dict[str, float]]) -> dict[tuple[str, int], float]:
        """Return what a run has of these epochs by its name and step."""
        names = set(epochs[0]) & set(run.data.metrics)
        read = self.store.client().get_metric_history
        return {(name, point.step): point.value for name in names for point in read(run.info.run_id, name)}


class NoWriter:
    """Does nothing of what a RunWriter does."""

    store = Store("", "")

    def start(self, *_about: object) -> NoRun:
        return NoRun()

    def evaluated(self, _files: ResultFiles) -> None:
        pass


def as_logged(params: dict[str, Any]) -> dict[str, str]:
    """Return params as MLflow keeps them: text as it is, the rest as JSON, and of either its beginning."""
    return {
        key: (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST]
        for key, value in params.items()
    }


def given(run: "Run") -> dict[str, str]:
    """Return those of a run's params that params.yaml gave it."""
    return {name: value for name, value in run.data.params.items() if not name.startswith(USED)}


def lacks_evaluation(run: "Run") -> bool:
    """Return whether a run of known weights was not evaluated yet, and is at no one's hands."""
    return (run.info.status == "FINISHED" or is_abandoned(run)) and EVALUATION_TAG not in run.data.tags


def is_abandoned(run: "Run") -> bool:
    """Return whether what wrote a run came to no end of it: it was killed, or the store failed, not the training."""
    if run.info.status == "RUNNING":
        return has_ended(run.data.tags.get(PROCESS_TAG, ""))
    return run.info.status == "FAILED" and NOTE_TAG not in run.data.tags


def models_of(run: "Run") -> list[str]:
    """Return the ids of the models that a run has logged."""
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def has_evaluation(run: "Run", digests: dict[str, str]) -> bool:
    """Return whether a run holds the evaluation with this digest."""
    return bool(run.data.tags.get(EVALUATION_TAG) == digests[EVALUATION_TAG])


def _artifacts(client: "MlflowClient", run_id: str, folder: str | None = None) -> Iterator[str]:
    """Yield the paths of a run's artifacts."""
    for artifact in client.list_artifacts(run_id, folder):
        if artifact.is_dir:
            yield from _artifacts(client, run_id, artifact.path)
        else:
            yield artifact.path


def _lost_models(client: "MlflowClient", run_id: str) -> list[str]:
    """Return the ids of a run's models that have no files. Those that the user has deleted are not lost."""
    from mlflow.exceptions import MlflowException

    lost = []
    for model_id in models_of(client.get_run(run_id)):
        with suppress(MlflowException):  # of a deleted one
            client.get_logged_model(model_id)
            lost += [model_id] if not client.list_logged_model_artifacts(model_id) else []
    return lost

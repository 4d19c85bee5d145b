"""What completes runs in a store: the evaluation of a training, or the whole result where it has no run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.batches.prepared import DatasetInfo
from stages.nets.weights import load_weights
from stages.tracking import provenance
from stages.tracking.artifacts import lost_models, models_of
from stages.tracking.datasets import CONTEXTS, dataset_input, dataset_record
from stages.tracking.journal import FILES, Event, Journal, files_of, now
from stages.tracking.models import log_model
from stages.tracking.params import as_logged, given, values, with_used
from stages.tracking.provenance import Provenance
from stages.tracking.result import (
    EVALUATED_BY_TAG,
    EVALUATION_TAG,
    JOURNAL_TAG,
    PATCH,
    RECORD,
    RECORD_TAG,
    TAKEN_UP_TAG,
    TIDIED_TAG,
    TIDIED_WEIGHTS_TAG,
    WEIGHTS,
    WEIGHTS_TAG,
    ResultFiles,
)
from stages.tracking.run import (
    ActiveRun,
    Start,
    found,
    has_evaluation,
    is_abandoned,
    is_of_journal,
    lacks_evaluation,
    points_of,
    started,
)
from stages.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class RunWriter:
    """Writes runs of the same params and the same provenance to a store. Its methods raise what goes wrong there."""

    def __init__(self, store: Store, params: dict[str, Any], origin: Provenance) -> None:
        self.store, self.provenance, self.params = store, origin, as_logged(params)

    def evaluated(self, files: ResultFiles) -> str:
        """Complete the run of the training that made these weights, and return its id.

        That is the latest run of these weights and params in the same DVC experiment that lacks an evaluation: none is
        overwritten. Where there is no such run, since this is another evaluation, or since DVC took the weights from
        its cache, a new one is made, unless the store failed during this training: then it is the run that began.
        """
        digests, tags = files.digests, self.provenance.tags
        own = {name: tags.get(name) for name in ("dvc.exp_name", "dvc.baseline_rev")}
        runs = found(self.store, self.params, digests)
        runs = [run for run in runs if own == {name: run.data.tags.get(name) for name in own}]
        # One that this journal has begun is taken up again.
        lacking = [run for run in runs if lacks_evaluation(run) or is_of_journal(run, tags.get(JOURNAL_TAG))]
        # Another clone may have made the same weights in the same store: our own directory goes first. And the same
        # training may have been run again before this evaluation arrives.
        time = self.provenance.time or now()
        lacking.sort(key=lambda run: (run.data.tags.get("directory") != tags["directory"], run.info.start_time > time))
        if lacking:
            return self.complete(files, lacking[0].info.run_id)
        if present := next((run.info.run_id for run in runs if has_evaluation(run, digests)), ""):
            return str(present)
        return self.complete(files, self.begun(files))

    def begun(self, files: ResultFiles) -> str:
        """Return the id of the run that began the training of this result and was abandoned, "" if there is none.

        It is of the same experiment of DVC, or else of the same directory, and has the same params and data; the
        epochs that it has are this result's.
        """
        tags = self.provenance.tags
        ties = {name: tags[name] for name in ("dvc.exp_name", "dvc.baseline_rev") if name in tags}
        epochs = files.epochs()
        expected = {(name, int(row["epoch"])): value for row in epochs for name, value in row.items()}
        data = {dataset_record(DatasetInfo(files.prepared), split)["digest"] for split in CONTEXTS}
        for run in self.store.search(tags=ties or {"directory": tags.get("directory", str(Path.cwd()))}):
            if (
                is_abandoned(run)
                and WEIGHTS_TAG not in run.data.tags
                and (ties or "dvc.exp_name" not in run.data.tags)
                and values(given(run)).items() <= values(self.params).items()
                and {entry.dataset.digest for entry in (run.inputs.dataset_inputs if run.inputs else [])} <= data
                and self._epochs_of(run, epochs).items() <= expected.items()
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
        client, time = self.store.client(), self.provenance.time or now()
        with self._origin(data) as origin:
            tags = self.provenance.tags | provenance.of_writer() | {RECORD_TAG: str(RECORD)}
            tags |= {WEIGHTS_TAG: digests[WEIGHTS_TAG], "training": "not repeated for this run"}
            datasets = [dataset_record(data, split) for split in ("train", "valid")]
            start = Start(tags, with_used(self.params, description.used), datasets, time, origin)
            run = ActiveRun(client, run_id) if run_id else started(self.store, start)
            begun = client.get_run(run.id)
            has_training = begun.info.status == "FINISHED"
            if run_id and not has_training:
                run.describe(start)
                run.tag({TAKEN_UP_TAG: "its end is another's, maybe on another machine"})
        if JOURNAL_TAG in self.provenance.tags:
            run.tag(provenance.of_writer() | {EVALUATED_BY_TAG: self.provenance.tags[JOURNAL_TAG]})
        run.logged |= {(name, 0) for name in metrics if name in begun.data.metrics}
        if not has_training:
            run.logged |= self._epochs_of(begun, epochs).keys()
            for row in epochs:
                run.log({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]), time)
            run.flush()  # before a model is logged, which makes the run FINISHED
            run.tag({WEIGHTS_TAG: digests[WEIGHTS_TAG]})
        client.log_inputs(run.id, [dataset_input(dataset_record(data, "test"))])
        for lost in client.search_logged_models([begun.info.experiment_id], f"source_run_id = '{run.id}'"):
            if lost.model_id not in models_of(begun):  # its process was killed before the run had it
                client.delete_logged_model(lost.model_id)
        run.log(metrics, 0, time, log_model(run.id, description, net, data, next(iter(models_of(begun)), None)))
        _log_weights(client, run.id, files)
        self._log_files(run.id, files)
        run.flush()
        run.tag({EVALUATION_TAG: digests[EVALUATION_TAG]})
        run.end("FINISHED", time)
        return run.id

    def put_back(self, run_id: str, files: ResultFiles) -> None:
        """Log the files of a result, and its model, to the run that lacks some; nothing else of it changes.

        What tools.tidy has removed stays so.
        Raises InputError if weights or dataset.json are not as written today.
        """
        if TIDIED_TAG not in self.store.client().get_run(run_id).data.tags:
            put_model_back(self.store, run_id, files)
        with self._origin(DatasetInfo(files.prepared)) as origin:
            for path in origin.values():
                self.store.client().log_artifact(run_id, str(path))
        self._log_files(run_id, files)

    @contextmanager
    def _origin(self, data: DatasetInfo) -> Iterator[dict[str, Path]]:
        """Yield files by their names: what prepare left out, and what differed from the commit."""
        with TemporaryDirectory() as folder:
            files = {path.name: path for path in [data.folder / "rejected.csv"] if path.exists()}
            if self.provenance.patch:
                files[PATCH] = Path(folder, PATCH)
                files[PATCH].write_bytes(self.provenance.patch)
            yield files

    def _log_files(self, run_id: str, files: ResultFiles) -> None:
        client, lock = self.store.client(), files.lock()
        for path in (files.root / "params.yaml", files.root / "dvc.yaml", files.results):
            client.log_artifact(run_id, str(path))
        if lock:
            client.log_text(run_id, lock, "dvc.lock")
        client.log_artifacts(run_id, str(files.plots), "plots")

    def _epochs_of(self, run: "Run", epochs: list[dict[str, float]]) -> dict[tuple[str, int], float]:
        """Return what a run has of these epochs by its name and step."""
        points = points_of(self.store.client(), run) if epochs[0].keys() & run.data.metrics.keys() else {}
        return {point: value for point, value in points.items() if point[0] in epochs[0]}


def put_model_back(store: Store, run_id: str, files: ResultFiles) -> None:
    """Log the weights of a result, and its models that have no files, to its run. Raises what goes wrong there.

    Raises InputError, and has logged nothing, if weights or dataset.json are not as written today.
    """
    data, (net, description) = DatasetInfo(files.prepared), load_weights(files.weights)
    client = store.client()
    run = client.get_run(run_id)
    _log_weights(client, run_id, files)
    for model_id in lost_models(client, run):
        log_model(run_id, description, net, data, model_id)
    for tag in run.data.tags.keys() & {TIDIED_TAG, TIDIED_WEIGHTS_TAG}:  # last: what was killed before is done again
        client.delete_tag(run_id, tag)


def _log_weights(client: "MlflowClient", run_id: str, files: ResultFiles) -> None:
    # They are what our own tools load, where MLflow's model could bring code along.
    client.log_artifact(run_id, str(files.weights), WEIGHTS)


def snapshot(journal: Journal, files: ResultFiles, params: dict[str, str], origin: Provenance) -> None:
    """Write an evaluation to a journal, with all that its run is made of. Raises OSError if there is no place."""
    kept = journal.keep(PATCH, origin.patch) if origin.patch else {}
    fixed = [("weights", files.weights), *(("plots", path) for path in sorted(files.plots.rglob("*.*")))]
    others = [("prepared", files.prepared / name) for name in ("dataset.json", "rejected.csv")]
    others += [("root", files.root / name) for name in ("params.yaml", "dvc.yaml", "dvc.lock")]
    others += [("history", files.history), ("results", files.results)]
    for place, path in [*fixed, *others]:
        name = path.relative_to(files.plots) if place == "plots" else path.name
        if path.exists():
            kept |= journal.keep(f"{place}/{name}", path, is_fixed=place in ("weights", "plots"))
    weights = {WEIGHTS_TAG: files.digests[WEIGHTS_TAG]}
    journal.write("evaluation", tags=origin.tags | weights, params=params, files=kept)


def bring_evaluation(store: Store, folder: Path, event: Event) -> str:
    """Bring an evaluation from a journal to a store, and return the id of its run."""
    paths = files_of(folder, event["files"])
    patch = paths[PATCH].read_bytes() if PATCH in paths else b""
    origin = Provenance(event["tags"] | {JOURNAL_TAG: folder.name}, patch, event["time"])
    [weights], [history], [results] = (
        [path for name, path in paths.items() if name.startswith(f"{place}/")]
        for place in ("weights", "history", "results")
    )
    kept = folder / FILES
    files = ResultFiles(weights, kept / "prepared", history, results, kept / "plots", kept / "root")
    return RunWriter(store, event["params"], origin).evaluated(files)

"""Which runs have to keep their weights and their models, and why."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.base.errors import InputError
from stages.tracking import sqlite
from stages.tracking.artifacts import models_of
from stages.tracking.git import git
from stages.tracking.provenance import user
from stages.tracking.result import EVALUATION_TAG, PATCH, WEIGHTS
from tools.dvclock import weights_digest
from tools.runs import Runs, datasets_of, rank_of
from tools.sweep.plan import FOLDER
from tools.tidy import cache
from tools.tidy.piece import GOING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

BEST = ("best/valid_accuracy", "best/valid_loss")


class Store:
    """The evaluated runs of a store that is this project's own: a SQLite file in it, with artifacts beside it."""

    def __init__(self, keep: int) -> None:
        """The `keep` best are needed. Raises InputError if the store cannot be read, or may be another's, too."""
        self.reader = Runs()
        database = self.reader.store.database
        if database is None or not database.resolve().is_relative_to(Path.cwd()):
            raise InputError(f"MLflow at {self.reader.name} is not in this project, so others may need what it has")
        self._artifacts = sqlite.artifacts_of(database).resolve()
        self.runs = self.reader.evaluated()
        with self.reader.reading():
            self.deleted = self.reader.store.search(having=[EVALUATION_TAG], deleted=True)
        self._best, self._user = best(self.runs, keep), user()
        self._sweeps = {folder.name for folder in FOLDER.iterdir() if folder.is_dir()} if FOLDER.is_dir() else set()

    def needed(self, run: "Run") -> str:
        """Return what a run keeps its weights and its model for, "" if for nothing. No file of it is read for that."""
        tags, commit = run.data.tags, run.data.tags.get("mlflow.source.git.commit")
        if run.info.status != "FINISHED":
            return "that have not ended well"
        if run.info.run_id in self._best:
            return self._best[run.info.run_id]
        if any(name in self._registered for name in (run.info.run_id, *models_of(run))):
            return "registered in MLflow"
        if tags.get("sweep") in self._sweeps:
            return f"of sweep {tags['sweep']}, as long as {FOLDER / tags['sweep']} is there"
        if tags.get("git.dirty") == "false" and commit in self._reachable:
            return "of a commit of a branch or tag"
        if tags.get("mlflow.user", "") != self._user:
            return f"of another user, {tags.get('mlflow.user', 'who is unknown')}"
        if not self.record(run).is_dir():
            return "whose artifacts are not beside the store"
        if self.digest(run) in self._committed:
            return "whose weights a commit of a branch or tag names, or the workspace"
        return ""

    def record(self, run: "Run") -> Path:
        """Return the folder of a run's artifacts; one that is not there if it is not in the store's own place."""
        return self._inside(run.info.artifact_uri)

    def digest(self, run: "Run") -> str:
        """Return the digest by which dvc.lock names the weights of a run, "" if that is not known."""
        return weights_digest(self.lock(run))

    def lock(self, run: "Run") -> str:
        """Return a run's dvc.lock, which has what its evaluation read; "" if it has none."""
        path = self.record(run) / "dvc.lock"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def patch(self, run: "Run") -> str:
        """Return what differed from a run's commit, "" if nothing did."""
        path = self.record(run) / PATCH
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def tag(self, run: "Run", tags: dict[str, str]) -> None:
        """Set tags of a run. Raises InputError."""
        from mlflow.entities import RunTag

        with self.reader.reading():
            self.reader.client.log_batch(run.info.run_id, tags=[RunTag(*pair) for pair in tags.items()])

    def heavy(self, run: "Run") -> list[Path]:
        """Return the folders of a run's weights and models that are there."""
        folders = [self.record(run) / WEIGHTS]
        places = {name: self._inside(self._models[name]) for name in models_of(run) if name in self._models}
        folders += [place for name, place in places.items() if name in place.parts]  # of this model alone
        there = [path for folder in folders for path in (folder, folder.with_name(folder.name + GOING))]
        return [path for path in there if path.is_dir()]

    def _inside(self, uri: str) -> Path:
        path = sqlite.path_of(uri).resolve()
        return path if path.is_relative_to(self._artifacts) else self._artifacts / "elsewhere"

    @cached_property
    def _registered(self) -> str:
        """All that the versions of registered models are tied to: runs, models, paths with their ids in them."""
        with self.reader.reading():
            found = list(_all(lambda token: self.reader.client.search_model_versions(page_token=token)))
        return " ".join(f"{version.run_id} {version.source} {version.model_id}" for version in found)

    @cached_property
    def _models(self) -> dict[str, str]:
        """The places of the models' files by their ids."""
        experiments = [self.reader.experiment_id]
        with self.reader.reading():
            found = _all(lambda token: self.reader.client.search_logged_models(experiments, page_token=token))
            return {model.model_id: model.artifact_location for model in found}

    @cached_property
    def _reachable(self) -> set[str]:
        return set(git("log", "--format=%H", *cache.BRANCHES).split())

    @cached_property
    def _committed(self) -> set[str]:
        """The digests of the weights in each dvc.lock of branches and tags, and of the workspace."""
        return {*map(weights_digest, cache.committed())} - {""}


def best(runs: Sequence["Run"], keep: int) -> dict[str, str]:
    """Return that a run is of the `keep` best by validation, among those of the same images, by the ids of these.

    So are those of which that is not known.
    """
    groups, found = defaultdict(list), {}
    for run in runs:
        data = datasets_of(run) if run.inputs else {}
        if "validation" in data and all(name in run.data.metrics for name in BEST):
            groups[data["validation"]].append(run)
        else:
            found[run.info.run_id] = "of which it is not known how good they are"
    for images, group in groups.items():
        name, _, digest = images.rpartition(" ")
        for run in sorted(group, key=rank_of, reverse=True)[:keep]:
            found[run.info.run_id] = f"of the {keep} best by validation on {name} {digest[:8]}"
    return found


def _all(page_of: "Callable[[str | None], PagedList[Any]]") -> Iterator[Any]:
    """Yield what is on all pages of an answer."""
    token: str | None = None
    while token != "":
        page = page_of(token)
        yield from page
        token = page.token or ""

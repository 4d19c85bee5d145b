"""Which runs have to keep their weights and their models, and why."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base.errors import InputError
from stages.tracking import sqlite
from stages.tracking.artifacts import models_of
from stages.tracking.git import git
from stages.tracking.provenance import user
from stages.tracking.result import WEIGHTS
from tools.dvclock import weights_digest
from tools.runs import Runs, datasets_of, rank_of
from tools.sweep.plan import FOLDER
from tools.tidy import cache

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

BEST = ("best/valid_accuracy", "best/valid_loss")
# There is no HEAD before the first commit.
BRANCHES = ("--ignore-missing", "HEAD", "--branches", "--tags", "--remotes")


class Store:
    """The evaluated runs of a store that is this project's own: a SQLite file in it, with artifacts beside it."""

    def __init__(self, keep: int) -> None:
        """The `keep` best are needed. Raises InputError if the store cannot be read, or may be another's, too."""
        self.reader = Runs()
        database = self.reader.store.database
        if database is None or not database.resolve().is_relative_to(Path.cwd().resolve()):
            raise InputError(f"MLflow at {self.reader.name} is not in this project, so others may need what it has")
        self.artifacts = sqlite.artifacts_of(database).resolve()
        if not self.artifacts.is_relative_to(Path.cwd().resolve()):
            raise InputError(f"{self.artifacts} is not in this project, so others may need what it has")
        self.runs = self.reader.evaluated()
        # Also of runs that were deleted, and of other experiments.
        locks = self.artifacts.glob("*/artifacts/dvc.lock")
        texts = {lock.parts[-3]: lock.read_text(encoding="utf-8", errors="replace") for lock in locks}
        self.locks = defaultdict(str, texts)
        self._best, self._user = best(self.runs, keep), user()
        self._sweeps = {folder.name for folder in FOLDER.iterdir() if folder.is_dir()} if FOLDER.is_dir() else set()

    def needed(self, run: "Run") -> str:
        """Return what a run keeps its weights and its model for, "" if for nothing."""
        tags = run.data.tags
        if run.info.status != "FINISHED":
            return "that have not ended well"
        if run.info.run_id in self._best:
            return self._best[run.info.run_id]
        if any(name in self._registered for name in (run.info.run_id, *models_of(run))):
            return "registered in MLflow"
        if tags.get("sweep") in self._sweeps:
            return f"of sweep {tags['sweep']}, as long as {FOLDER / tags['sweep']} is there"
        if tags.get("git.dirty") == "false" and tags.get("mlflow.source.git.commit") in self._reachable:
            return "of a commit of a branch or tag"
        if not self._user or tags.get("mlflow.user") != self._user:
            return f"of another user, {tags.get('mlflow.user', 'who is unknown')}"
        if not Path(tags.get("directory", "/")).is_relative_to(Path.cwd()):
            return "made in another folder than this project's"
        if sqlite.path_of(run.info.artifact_uri).resolve() != self.record(run) or not self.record(run).is_dir():
            return "whose artifacts are not beside the store"
        if weights_digest(self.locks[run.info.run_id]) in self._committed:
            return "whose weights a commit of a branch or tag names, or the workspace"
        return ""

    def record(self, run: "Run") -> Path:
        """Return the folder where a run's artifacts are if they are beside the store."""
        return Path(self.artifacts, run.info.run_id, "artifacts")

    def tag(self, run: "Run", tags: dict[str, str]) -> None:
        """Set tags of a run. Raises InputError."""
        from mlflow.entities import RunTag

        with self.reader.reading():
            self.reader.client.log_batch(run.info.run_id, tags=[RunTag(*pair) for pair in tags.items()])

    def models(self, run: "Run") -> list[Path]:
        """Return the folders of a run's models that are there."""
        places = [self.artifacts / "models" / name / "artifacts" for name in models_of(run)]
        return [place for place in places if place.is_dir()]

    def weights(self, run: "Run") -> list[Path]:
        """Return the folder of a run's weights, if it is there."""
        return [folder] if (folder := self.record(run) / WEIGHTS).is_dir() else []

    @cached_property
    def _registered(self) -> str:
        """All that the versions of registered models are tied to: runs, models, paths with their ids in them."""
        found: list[ModelVersion] = []
        token: str | None = None
        with self.reader.reading():
            while token != "":
                page = self.reader.client.search_model_versions(page_token=token)
                found, token = found + list(page), page.token or ""
        return " ".join(f"{version.run_id} {version.source} {version.model_id}" for version in found)

    @cached_property
    def _reachable(self) -> set[str]:
        return set(git("log", "--format=%H", *BRANCHES).split())

    @cached_property
    def _committed(self) -> set[str]:
        """The digests of the weights in each dvc.lock of branches and tags, and of the workspace."""
        return {*map(weights_digest, cache.committed(self._reachable))} - {""}


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

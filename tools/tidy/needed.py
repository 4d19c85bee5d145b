"""Which runs have to keep their weights and their models, and why."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base import instructions
from stages.base.params import NOTHING, RANDOM, WEIGHTS
from stages.base.processes import AUTO, thread_count
from stages.tracking.git import GitError, git, prefix
from stages.tracking.params import given
from stages.tracking.result import EVALUATION_TAG, PATCH, RECORD, RECORD_TAG, TIDIED_WEIGHTS_TAG
from tools.commits import lock_at, still_missing, text_at
from tools.dvclock import as_yaml, data_digest, weights_digest
from tools.runs import PREDICTIONS, Runs, datasets_of, rank_of
from tools.sweep.plan import FOLDER
from tools.tidy.cache import results

if TYPE_CHECKING:
    from mlflow.entities import Run

RECORDS = ("params.yaml", "dvc.lock", PREDICTIONS)  # artifacts without which a run cannot be rebuilt


class Needed:
    """The evaluated runs of a store, those that were deleted there, and what each is needed for."""

    def __init__(self, store: Runs, keep: int, unequal: bool) -> None:
        """The `keep` best are needed; with `unequal`, those are not that would come back with other bits.

        Raises InputError if the store cannot be read.
        """
        self._store, self._unequal = store, unequal
        self.runs = store.evaluated()
        with store.reading():
            self.deleted = store.store.search(having=[EVALUATION_TAG], deleted=True)
            self._registered = dict(registered(store))
        self._best = best(self.runs, keep)
        self._sweeps = dict(sweeps())
        # What was read of artifacts by now, by the runs' ids.
        self._digests: dict[str, str] = {}
        self._listed: dict[tuple[str, str], set[str]] = {}

    def why(self, run: "Run") -> str:
        """Return what a run keeps its weights and its model for, "" if for nothing."""
        tags, run_id = run.data.tags, run.info.run_id
        if run.info.status == "RUNNING":
            return "running"
        if aliases := self._registered.get(run_id):
            return aliases
        if run_id in self._best:
            return self._best[run_id]
        sweep = tags.get("sweep", "")
        if sweep and self._sweeps.get(sweep) == tags.get("dvc.baseline_rev"):
            return f"of sweep {sweep}, as long as {FOLDER / sweep} is there"
        if self.digest(run) in self._committed:
            return "whose weights are a commit's of a branch or tag, or the workspace's"
        if tags.get("git.dirty") == "false" and tags.get("mlflow.source.git.commit") in self._reachable:
            return "of a commit of a branch or tag"
        return self._not_to_be_had_again(run)

    def digest(self, run: "Run") -> str:
        """Return the digest by which dvc.lock names the weights of a run, "" if that is not known."""
        if tidied := run.data.tags.get(TIDIED_WEIGHTS_TAG):
            return str(tidied)
        if run.info.run_id not in self._digests:
            lock = self.text(run, "dvc.lock")
            self._digests[run.info.run_id] = weights_digest(as_yaml(lock.encode()))
        return self._digests[run.info.run_id]

    def text(self, run: "Run", path: str) -> str:
        """Return what one of a run's artifacts at their top holds, "" if there is none. Raises InputError."""
        from mlflow.artifacts import load_text

        with self._store.reading():
            return load_text(f"{run.info.artifact_uri}/{path}") if path in self._names(run) else ""

    def _names(self, run: "Run", folder: str = "") -> set[str]:
        key = run.info.run_id, folder
        if key not in self._listed:
            with self._store.reading():
                self._listed[key] = {file.path for file in self._store.client.list_artifacts(*key)}
        return self._listed[key]

    @cached_property
    def _committed(self) -> set[str]:
        """The digests of the weights in dvc.lock of each commit of a branch or tag, and of the workspace."""
        here = as_yaml(Path("dvc.lock").read_bytes()) if Path("dvc.lock").exists() else {}
        return {digest for lock in [here, *map(lock_at, results())] if (digest := weights_digest(lock))}

    @cached_property
    def _reachable(self) -> set[str]:
        return set(git("log", "--format=%H", "--ignore-missing", "HEAD", "--branches", "--tags", "--remotes").split())

    def _not_to_be_had_again(self, run: "Run") -> str:
        """Return why a run's weights could not be made again, here and with equal bits, "" if they can be."""
        tags, params = run.data.tags, given(run)
        if int(tags.get(RECORD_TAG, RECORD)) > RECORD:
            return "of later code"
        if not (commit := tags.get("mlflow.source.git.commit")):
            return "that cannot be rebuilt: logged without a commit"
        if tags.get("git.untracked"):
            return "that cannot be rebuilt: they had new files that were too large for their record"
        try:
            git("cat-file", "-e", f"{commit}^{{commit}}")
        except GitError:
            return "that cannot be rebuilt: their commit is not in this repository"
        names = self._names(run) | self._names(run, "plots")
        if lacks := [name for name in RECORDS if name not in names]:
            return f"that cannot be rebuilt: without {lacks[0]}"
        patch = self.text(run, PATCH)
        if lost := next((path for path in inputs(params) if not is_kept(path, commit, patch)), None):
            return f"that cannot be rebuilt: neither git nor DVC has {lost}"
        return "" if self._unequal else other_bits(tags, params)


def best(runs: Sequence["Run"], keep: int) -> dict[str, str]:
    """Return that a run is of the `keep` best by validation, among those of the same images, by the ids of these."""
    groups = defaultdict(list)
    for run in runs:
        groups[datasets_of(run)["validation"]].append(run)
    found = {}
    for images, group in groups.items():
        name, _, digest = images.rpartition(" ")
        for run in sorted(group, key=rank_of, reverse=True)[:keep]:
            found[run.info.run_id] = f"of the {keep} best by validation on {name} {digest[:8]}"
    return found


def registered(store: Runs) -> Iterator[tuple[str, str]]:
    """Yield the id of each run whose model has an alias in the registry, and that name."""
    token = None
    while token != "":
        page = store.client.search_registered_models(page_token=token)
        for model in page:
            for alias in model.aliases:
                version = store.model_version(model.name, alias)
                if version and version.run_id:
                    yield version.run_id, f"registered as {model.name}@{alias}"
        token = page.token or ""


def sweeps() -> Iterator[tuple[str, str]]:
    """Yield name and baseline of each sweep whose plan is still here."""
    for plan in FOLDER.glob("*/plan.json"):
        with suppress(ValueError, KeyError):  # it is damaged, and no sweep goes on from it
            yield plan.parent.name, json.loads(plan.read_bytes())["baseline"]


def inputs(params: Mapping[str, str]) -> list[Path]:
    """Return the data and weights that a user brought to a run of these params."""
    paths = [Path(params.get(name) or NOTHING) for name in ("prepare.path", "prepare.exclude")]
    weights = params.get("train.init_from") or RANDOM
    paths += [WEIGHTS / weights] if weights != RANDOM else []
    return [path for path in paths if path != NOTHING]


def is_kept(path: Path, commit: str, patch: str) -> bool:
    """Return whether git or DVC has what was at `path` in a run of this commit with this patch."""
    if path.is_absolute() or ".." in path.parts:
        return False
    names = [f"{one}.dvc" for one in (path, *path.parents[:-1])]
    if any(f" b/{prefix() / name}\n" in patch for name in [str(path), *names]) or git("ls-tree", commit, f"./{path}"):
        return True
    digests = {name: data_digest(text) for name in names if (text := text_at(commit, name))}
    return bool(digests) and not still_missing(digests)


def other_bits(tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Return why weights that are made again here would have other bits than those of a run, "" if they would not."""
    level, device = params.get("train.determinism", instructions.PORTABLE), tags.get("env.device", "cpu")
    threads = params.get("train.threads", AUTO)
    if level == "off":
        return "that would come back with other bits: train.determinism is off"
    if device != "cpu" and device not in gpus():
        return f"that would come back with other bits: made on {device}"
    if level != instructions.PORTABLE and tags.get("env.cpu") != instructions.cpu_model():
        return f"that would come back with other bits: made on {tags.get('env.cpu')}"
    if threads == AUTO and tags.get("env.threads") != str(thread_count(AUTO)):
        return f"that would come back with other bits: made with {tags.get('env.threads')} threads"
    return ""


def gpus() -> list[str]:
    """Return the names of the GPUs here."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

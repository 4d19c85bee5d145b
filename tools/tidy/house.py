"""What there is in MLflow, in DVC's cache and on this disk, and what of it can go."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from time import strftime
from typing import TYPE_CHECKING

from stages.base.errors import InputError
from stages.tracking.git import git, git_bytes
from stages.tracking.result import TIDIED_TAG, TIDIED_WEIGHTS_TAG, TRAINING_TAG
from tools import recorded
from tools.commits import cached, contents
from tools.dvclock import digests_in, weights_digest
from tools.runs import named
from tools.tidy import cache, leftovers
from tools.tidy.again import Origins
from tools.tidy.needed import BEST, Store
from tools.tidy.piece import GOING, Piece, of_files

if TYPE_CHECKING:
    from mlflow.entities import Run

PINS = "refs/repronet/tidied"  # the commits of tidied runs, so that git keeps them
STAGES = ("prepare", "train", "evaluate")


class House:
    """What can go, what stays and why."""

    def __init__(self, keep: int) -> None:
        """The `keep` best runs stay. What cannot be looked into is left alone."""
        self._keep, self.pieces, self.remarks = keep, list[Piece](), list[str]()
        self._going: list[Run] = []
        ended: set[str] = set()
        try:
            check_alone()
            self._store = Store(keep)
            with self._store.reader.reading():
                finished = self._store.reader.store.search(having=[TRAINING_TAG], status="FINISHED")
            ended = {run.data.tags[TRAINING_TAG] for run in finished}
            self._look_at_runs()
        except InputError as error:
            self.remarks.append(f"models and DVC's cache are left alone: {error}")
        self.pieces += leftovers.pieces(ended)
        if number := leftovers.waiting():
            self.remarks.append(f"kept: {number:,} journals that MLflow has not all of; python -m tools.sync brings it")

    def mark(self) -> None:
        """Pin the commits of the runs that lose something, and tag the runs, before anything goes. Raises InputError.

        tools.sync would bring back what a run has lost, unless the run says so.
        """
        commits = {run.data.tags["mlflow.source.git.commit"] for run in self._going}
        git_bytes("update-ref", "--stdin", stdin="".join(f"update {PINS}/{one} {one}\n" for one in commits).encode())
        for run in self._going:
            if run.data.tags.get(TIDIED_WEIGHTS_TAG) != (digest := self._store.digest(run)):
                self._store.tag(run, {TIDIED_WEIGHTS_TAG: digest, TIDIED_TAG: strftime("%Y-%m-%d")})

    def _look_at_runs(self) -> None:
        store, origins, reasons, cache_stays = self._store, Origins(), Counter[str](), cache.why_shared()
        kept: list[Run] = []
        light = set[str]()  # the ids of those that go and have nothing but outputs in DVC's cache
        for run in store.runs:
            why, heavy = store.needed(run), store.heavy(run)
            # Else there is nothing to remove, and nothing to find out.
            if not why and (heavy or (not cache_stays and self._has_weights(run))):
                why = origins.why_lost(run, store.record(run))
                self._going += [] if why else [run]
                light |= set() if why or heavy else {run.info.run_id}
            if why:
                reasons[why] += 1
                kept.append(run)
                heavy = [path for path in heavy if path.suffix == GOING]
            if heavy:
                accuracy = f"validation accuracy {run.data.metrics.get(BEST[0], 0):.4f}"
                told = "its removal was killed" if why else f"{accuracy}, not of the {self._keep} best"
                self.pieces.append(of_files("model", named(run), told, heavy))
        self.remarks += [f"kept: {number:,} {why}" for why, number in reasons.most_common()]
        try:
            if cache_stays:
                raise InputError(cache_stays)
            self.pieces += [*self._cache(kept)]
        except InputError as error:
            self.remarks.append(f"DVC's cache is left alone: {error}")
            self._going = [run for run in self._going if run.info.run_id not in light]

    def _cache(self, kept: "list[Run]") -> Iterator[Piece]:
        store, stay, runs = self._store, {run.info.run_id for run in kept}, defaultdict(list)
        for run in store.runs:
            tags = run.data.tags
            runs[tags.get("dvc.exp_name"), tags.get("dvc.baseline_rev"), store.digest(run)].append(run.info.run_id)
        digests, going = {*map(store.digest, kept)}, {run.info.run_id for run in self._going}
        locks, dropped, without = [*map(store.lock, self._going)], [], 0
        for each, lock in self._experiments.items():
            own = runs[each.name, each.baseline, digest] if (digest := weights_digest(lock)) else []
            without += not own
            if own and digest not in digests and not stay.intersection(own):
                dropped.append(each.commit)
                locks += [lock] * bool(going.intersection(own))
        if without:
            told = "experiments whose result has no run in MLflow; python -m tools.sync makes it"
            self.remarks.append(f"kept: the outputs of {without:,} {told}")
        outs = [digests_in(lock, "outs").get(name, {}) for lock in locks for name in STAGES]
        made = [digest for each in outs for digest in each.values() if digest]
        # What the others read stays: they are made again of it. Of runs that were deleted all stays.
        texts = [store.lock(run) for run in [*kept, *store.deleted]]
        texts += [
            text for run in [*store.runs, *store.deleted] for text in (store.patch(run), *data_of(store.lock(run)))
        ]
        yield from cache.unneeded(made, [*map(store.digest, self._going)], dropped, texts)

    @cached_property
    def _experiments(self) -> dict[recorded.RecordedResult, str]:
        """DVC's experiments, and the dvc.lock of each."""
        found = recorded.experiments()
        locks = contents([f"{each.commit}:./dvc.lock" for each in found])
        return {each: locks.get(f"{each.commit}:./dvc.lock", b"").decode(errors="replace") for each in found}

    def _has_weights(self, run: "Run") -> bool:
        digest = self._store.digest(run)
        return bool(digest) and cached(digest).exists()


def data_of(lock: str) -> list[str]:
    """Return the digests of what the stages in a dvc.lock read, and did not make."""
    outs = {path for stage in digests_in(lock, "outs").values() for path in stage}
    return [digest for stage in digests_in(lock, "deps").values() for path, digest in stage.items() if path not in outs]


def check_alone() -> None:
    """Raise InputError if git's objects here are another clone's, too, or there are other worktrees."""
    if git("worktree", "list", "--porcelain").count("worktree ") > 1:
        raise InputError("there are several worktrees, which share them")
    if Path(git("rev-parse", "--git-path", "objects/info/alternates").strip()).exists():
        raise InputError("this clone has its commits from another one, which may lose them")
    if any(name.endswith((".promisor", ".partialclone")) for name in git("config", "--list", "--name-only").split()):
        raise InputError("this clone has but a part of its commits' files")

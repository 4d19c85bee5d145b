"""What there is in MLflow and in DVC's cache, what of it can go, and how it goes."""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from time import strftime
from typing import TYPE_CHECKING

from stages.base.errors import InputError, listed
from stages.base.text import warn
from stages.tracking.git import git, git_bytes
from stages.tracking.result import TIDIED_TAG, TIDIED_WEIGHTS_TAG
from tools import recorded
from tools.commits import contents
from tools.dvclock import digests_in, weights_digest
from tools.runs import named
from tools.tidy import cache
from tools.tidy.again import Origins
from tools.tidy.needed import BEST, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

PINS = "refs/repronet/tidied"  # the commits of tidied runs, so that git keeps them
TRASH = ".tidied"  # beside the artifacts: what is in it has gone, and is deleted next


class House:
    """What can go, what stays and why."""

    def __init__(self, keep: int) -> None:
        """The `keep` best runs stay. Raises InputError where others may need what is here."""
        check_alone()
        self._store, origins, reasons = Store(keep), Origins(), Counter[str]()
        self._going: list[Run] = []
        kept: list[Run] = []
        gone: set[str] = set()
        store = self._store
        for run in store.runs:
            why = store.needed(run)
            if not why and TIDIED_TAG in run.data.tags and not store.weights(run):
                gone.add(run.info.run_id)
                continue
            why = why or origins.why_lost(run, store.record(run))
            (kept if why else self._going).append(run)
            reasons[why] += bool(why)
        self.remarks = [f"kept: {number:,} {why}" for why, number in reasons.items() if number]
        # Weights last: as long as they are there, what a kill has left of the rest is found, and removed.
        self._folders = [*map(store.models, self._going), *map(store.weights, self._going)]
        self._files: list[Path] = []
        try:
            if why := cache.why_shared():
                raise InputError(why)
            self._files = self._outputs(gone)
        except InputError as error:
            self.remarks.append(f"DVC's cache is left alone: {error}")
        if tidied := [named(run) for run in kept if TIDIED_TAG in run.data.tags]:
            told = "python -m tools.rebuild RUN brings back what they may lack"
            self.remarks.append(f"of these {len(tidied):,} were tidied before; {told}: {listed(tidied, 3)}")

    def lines(self) -> Iterator[str]:
        """Yield what stays and why, and what can go, and how large that is."""
        yield from self.remarks
        if not self._going:
            yield "there is nothing to delete"
            return
        n = len(self._going)
        total = size = sum(map(freed, self._files))
        for i, run in enumerate(self._going):
            folders = [*self._folders[i], *self._folders[n + i]]
            accuracy = run.data.metrics[BEST[0]]
            yield f"model  {named(run)}, validation accuracy {accuracy:.4f}  {shown(of := sum(map(freed, folders)))}"
            total += of
        yield f"cache  {len(self._files):,} files that are outputs of these  {shown(size)}"
        yield f"in all {shown(total)}"

    @property
    def is_tidy(self) -> bool:
        """Whether there is nothing to delete."""
        return not self._going

    def empty_trash(self) -> None:
        """Delete what a killed tidy has removed, and not deleted."""
        try:
            shutil.rmtree(self._store.artifacts / TRASH)
        except FileNotFoundError:
            pass
        except OSError as error:
            warn(f"warning: what was removed earlier cannot be deleted: {error}")

    def check(self, now: "House") -> None:
        """Raise InputError if other runs or files can go `now`."""
        changed = {named(run) for run in self._going} ^ {named(run) for run in now._going}
        if changed or {*self._files} != {*now._files}:
            what = listed(sorted(changed)) or "what of DVC's cache can go"
            raise InputError(f"{what} has changed since the list was made: run this again")

    def remove(self) -> None:
        """Remove what can go. Raises InputError if that cannot be deleted.

        What is killed loses nothing: commits are pinned and runs tagged first, and each folder goes in one step.
        tools.sync would bring back what a run has lost, unless the run says so.
        """
        store, trash = self._store, self._store.artifacts / TRASH
        commits = {run.data.tags["mlflow.source.git.commit"] for run in self._going}
        pins = "".join(f"update {PINS}/{one} {one}\n" for one in commits)
        try:
            trash.mkdir(exist_ok=True)
            place = Path(mkdtemp(dir=trash))  # something of an earlier tidy may be there, and stay
            git_bytes("update-ref", "--stdin", stdin=pins.encode())
            for run in self._going:
                digest = weights_digest(store.locks[run.info.run_id])
                store.tag(run, {TIDIED_WEIGHTS_TAG: digest, TIDIED_TAG: strftime("%Y-%m-%d")})
            for path in self._files:
                path.unlink(missing_ok=True)
            for i, path in enumerate(path for folders in self._folders for path in folders):
                path.rename(place / str(i))
            shutil.rmtree(trash)
        except OSError as error:
            raise InputError(f"not all could be deleted: {error}; run this again when that is mended") from error

    def _outputs(self, gone: set[str]) -> list[Path]:
        """Return the files in DVC's cache that train of the runs that go has made, and nothing else needs.

        Those with the ids `gone` have lost theirs before.
        """
        store, runs = self._store, defaultdict(list)
        for run in store.runs:
            runs[run.data.tags.get("dvc.exp_name"), run.data.tags.get("dvc.baseline_rev")].append(run)
        going = {run.info.run_id for run in self._going}
        gone = gone | going
        found = recorded.experiments()
        locks = contents([f"{each.commit}:./dvc.lock" for each in found])
        dropped = []
        for each in found:
            outs = outputs_in(locks.get(f"{each.commit}:./dvc.lock", b"").decode(errors="replace"))
            own = [run for run in runs[each.name, each.baseline] if outputs_in(store.locks[run.info.run_id]) == outs]
            dropped += [each.commit] if own and gone.issuperset(run.info.run_id for run in own) else []
        made = [one for run_id in going for one in digests_in(store.locks[run_id], "outs")["train"].values() if one]
        # What the others read stays: they are made again of it. Of other experiments' and deleted runs all stays.
        texts = [lock for run_id, lock in store.locks.items() if run_id not in gone]
        texts += [digest for lock in store.locks.values() for digest in data_of(lock)]
        return cache.unneeded(made, dropped, texts)


def outputs_in(lock: str) -> dict[str, str]:
    """Return the digests of what prepare and train made, as a dvc.lock has them, by their paths."""
    outs = digests_in(lock, "outs")
    return {**outs.get("prepare", {}), **outs.get("train", {})}


def data_of(lock: str) -> list[str]:
    """Return the digests of what the stages in a dvc.lock read, and did not make."""
    outs = {path for stage in digests_in(lock, "outs").values() for path in stage}
    return [digest for stage in digests_in(lock, "deps").values() for path, digest in stage.items() if path not in outs]


def freed(path: Path) -> int:
    """Return the bytes that are free when a file or folder has gone: not those that are there by another name, too."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(freed, path.iterdir()))
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 else 0


def shown(size: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of_unit:
            return f"{size / of_unit:.1f} {unit}"
    return f"{size} B"


def check_alone() -> None:
    """Raise InputError if git's objects here are another clone's, too, or there are other worktrees."""
    if len(re.findall("^worktree ", git("worktree", "list", "--porcelain"), re.MULTILINE)) > 1:
        told = "git worktree prune forgets those that were deleted"
        raise InputError(f"there are several worktrees, which share what is here: nothing is deleted; {told}")
    if Path(git("rev-parse", "--git-path", "objects/info/alternates").strip()).exists():
        raise InputError("this clone has its commits from another one, which may lose them: nothing is deleted")
    is_shallow = git("rev-parse", "--is-shallow-repository").strip() == "true"
    settings = git("config", "--list", "--name-only").split()
    if is_shallow or any(name.endswith((".promisor", ".partialclone")) for name in settings):
        raise InputError("this clone has but a part of its commits and their files: nothing is deleted")

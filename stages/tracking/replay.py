"""Journals brought to a store: as they are written, or later. Doing it twice changes nothing."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stages.base.errors import InputError
from stages.base.experiment import main_repository
from stages.base.locks import locked_if_free
from stages.tracking.journal import (
    DAMAGED,
    DamagedError,
    Event,
    Events,
    files_of,
    has_end,
    is_written,
    journals,
    now,
    remove,
)
from stages.tracking.monitor import PREFIX
from stages.tracking.result import ATTEMPT_TAG, JOURNAL_TAG, TRAINING_TAG, WEIGHTS_TAG
from stages.tracking.run import ActiveRun, Start, delete_others, run_name, started
from stages.tracking.store import Store

PLACE_TAGS = ("directory", "dvc.exp_name", "dvc.baseline_rev")


class Replay:
    """Brings one journal to a store, from its beginning on. Its methods raise what goes wrong with the store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder, self._events = store, folder, Events(folder)
        self._run: ActiveRun | None = None
        self._time = 0
        self.run_id, self.is_whole = "", False
        self.sampled = 0.0  # between samples of the machine, while a training goes on; 0: none are wanted

    def go_on(self) -> None:
        """Bring what has been written by now."""
        for event in self._events.read():
            self._time = event["time"]
            self._bring(event)
        if self._events.is_damaged:
            raise DamagedError(f"the journal {self._folder} is damaged")
        if self._run:
            self._run.flush()

    def log_machine(self, sample: dict[str, float]) -> None:
        """Log a sample of the machine at the step after the last; one that the store does not take is lost."""
        if self._run and sample:
            steps = (step for name, step in self._run.logged if name.startswith(PREFIX))
            self._run.log(sample, 1 + max(steps, default=-1), now())
            self._run.flush()

    def finish(self) -> None:
        """Remove the journal, to which no more is to come; without an end, its process was killed."""
        if self._run and not self.is_whole:
            self._run.end("KILLED", self._time)
        if self._run:
            delete_others(self._store, self._folder.name, self._run.id)
        remove(self._folder)

    def _bring(self, event: Event) -> None:
        kind = event["kind"]
        if kind in ("training", "evaluation"):
            deliver_those_before(self._store, self._folder)
        if kind == "training":
            self._run = started(self._store, start_of(self._folder, event))
            self.run_id = self._run.id
            self.sampled = float(event.get("sampled", 0))
        elif kind == "points" and self._run:
            self._run.log(event["metrics"], event["step"], event["time"])
        elif kind == "tags" and self._run and not self._run.has_ended:
            self._run.tag(event["tags"])
        elif kind == "end" and self._run:
            self._run.end(event["status"], event["time"], event["note"])
            self.is_whole = True
        elif kind == "evaluation":
            from stages.tracking.writer import bring_evaluation  # which needs torch

            self.run_id = bring_evaluation(self._store, self._folder, event)
            self.is_whole = True


def start_of(folder: Path, event: Event) -> Start:
    """Return the start of a run as an event has it."""
    tags = event["tags"] | {JOURNAL_TAG: folder.name}
    return Start(tags, event["params"], event["datasets"], event["time"], files_of(folder, event["files"]))


class BusyError(InputError):
    """Another process is bringing a journal."""


@dataclass(frozen=True)
class Pending:
    """A journal that its store has not got the whole of."""

    folder: Path
    store: str  # see place_of
    experiment: str
    name: str  # of the run
    what: str  # "training" or "evaluation", "" for one that came to nothing
    time: int  # of its start, in ms since 1970
    tags: dict[str, str]  # of the run
    is_going_on: bool  # whether its process may write more

    def is_of(self, store: Store) -> bool:
        """Return whether it is for this store."""
        return (self.store, self.experiment) == (place_of(store, os.environ), store.experiment)

    def goes_on_from(self, other: "Pending") -> bool:
        """Return whether the other is an attempt before, or the training here of the weights evaluated here."""
        same = (TRAINING_TAG,) if self.what == "training" else (WEIGHTS_TAG, *PLACE_TAGS)
        is_same = same[0] in self.tags and all(self.tags.get(name) == other.tags.get(name) for name in same)
        return is_same and other.order < self.order

    @property
    def order(self) -> tuple[bool, int, int]:
        """What orders those of the same weights or training. Of two attempts the times say less: clocks are set."""
        return self.what == "evaluation", int(self.tags.get(ATTEMPT_TAG, 0)), self.time


def place_of(store: Store, environment: Mapping[str, str]) -> str:
    """Return what a journal calls its store: without what is secret, and in a project's own folder wherever that is."""
    return store.name.replace(str(main_repository(environment)), "PROJECT")


def pending() -> Iterator[Pending]:
    """Yield the journals of this project, the oldest first."""
    for folder, (about, *events) in journals(os.environ):
        what = next((event["kind"] for event in events if event["kind"] in ("training", "evaluation")), "")
        tags = {name: value for event in events for name, value in event.get("tags", {}).items()}
        is_going_on = not has_end(events) and is_written(folder)
        place = about.get("store", ""), about.get("experiment", "")
        yield Pending(folder, *place, run_name(tags), what, about["time"], tags, is_going_on)


def delivered(store: Store, folder: Path) -> str:
    """Bring the whole journal of a process that has ended, and those before it; return the id of its run.

    That is "" if another process has brought it. Raises BusyError if one is at it, DamagedError, and whatever goes
    wrong with the store.
    """
    with locked_if_free(folder) as is_ours:
        if not is_ours:
            raise BusyError("another process is bringing it")
        if not folder.exists():
            return ""
        replay = Replay(store, folder)
        try:
            replay.go_on()
        except DamagedError:
            folder.rename(f"{folder}{DAMAGED}")  # not to be met again, nor to be lost
            raise
        replay.finish()
    return replay.run_id


def deliver_those_before(store: Store, folder: Path) -> None:
    """Bring the journals that this one goes on from. Raises what `delivered` does."""
    there = [each for each in pending() if each.is_of(store)]
    this = next((each for each in there if each.folder.name == folder.name), None)
    for other in there:
        if this and this.goes_on_from(other) and not other.is_going_on:
            with suppress(DamagedError):  # it was put aside
                delivered(store, other.folder)

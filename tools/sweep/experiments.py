"""An experiment of a sweep: what it is, which states it goes through, and what runs it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Protocol

from stages.training.selection import rank


@dataclass(frozen=True)
class Description:
    """All that is needed to run an experiment anywhere: it can be serialised, and has no process and no local path."""

    name: str
    baseline: str  # the commit that it starts from
    patch: bytes  # to the tracked files of that commit
    overrides: Sequence[str]  # of its params.yaml, as `dvc exp run -S` takes them
    environment: Mapping[str, str]  # variables besides those of the place where it runs


class State(StrEnum):
    """How far an experiment is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"  # DVC has its results here
    FAILED = "failed"
    PRUNED = "pruned"  # not worth running to its end


NEXT_STATES = {
    State.WAITING: (State.RUNNING, State.DONE, State.PRUNED),  # done: an earlier process of this sweep ran it
    State.RUNNING: (State.DONE, State.FAILED, State.PRUNED, State.WAITING),  # waiting: the sweep is interrupted
    State.FAILED: (State.WAITING,),  # it is tried again
    State.DONE: (),
    State.PRUNED: (),
}


@dataclass(frozen=True)
class Metrics:
    """What the metrics files of an experiment hold."""

    valid_accuracy: float  # of the epoch that was kept
    valid_loss: float
    test_accuracy: float

    def __str__(self) -> str:
        return f"validation accuracy {self.valid_accuracy:.4f}, test accuracy {self.test_accuracy:.4f}"

    @property
    def rank(self) -> tuple[float, float]:
        """The key to sort by, the best last."""
        return rank(self.valid_accuracy, self.valid_loss)


@dataclass(frozen=True)
class Ending:
    """How an experiment ended: DONE with metrics, FAILED or PRUNED with a reason."""

    state: State
    reason: str = ""
    metrics: Metrics | None = None


@dataclass
class Experiment:
    """One experiment of a sweep, and how far it is."""

    description: Description
    number: int  # of its configuration: those of one number differ in their seed alone
    values: dict[str, str]  # what tells configurations apart
    state: State = State.WAITING
    ending: Ending | None = None  # the last one
    attempts: int = 0
    epochs: int = 0  # of this attempt that the search was told about
    started: float = 0.0  # seconds, of time.monotonic
    seconds: float = 0.0  # that the last attempt took, 0 if it was not run by this process

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def prepared(self) -> tuple[str, ...]:
        """What of the overrides the prepare stage sees: experiments that agree in it share the prepared data."""
        return prepared(self.description.overrides)

    def change(self, state: State) -> None:
        """Go to the next state. Raises ValueError for one that cannot follow."""
        if state not in NEXT_STATES[self.state]:
            raise ValueError(f"{self.name} is {self.state} and cannot become {state}")
        if state is State.RUNNING:
            self.started, self.attempts, self.epochs = time.monotonic(), self.attempts + 1, 0
        elif self.state is State.RUNNING:
            self.seconds = time.monotonic() - self.started
        self.state = state

    def end(self, ending: Ending) -> None:
        """Go to the state that `ending` has, and keep it."""
        self.change(ending.state)
        self.ending = ending


def prepared(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return those of the overrides that the prepare stage sees."""
    return tuple(text for text in overrides if text.lstrip("+").startswith("prepare."))


def ranked(experiments: Sequence[Experiment]) -> list[tuple[Experiment, Metrics]]:
    """Return the experiments that are done, with their metrics, the best by validation first."""
    done = [(e, e.ending.metrics) for e in experiments if e.ending and e.ending.metrics]
    return sorted(done, key=lambda pair: pair[1].rank, reverse=True)


class Phase(Enum):
    """What an experiment that was started is at."""

    QUEUED = auto()  # it waits for a place
    PREPARING = auto()
    TRAINING = auto()  # DVC's cache has its prepared data
    ENDED = auto()


class Runner(Protocol):
    """A place that runs experiments. Between `start` and `collect` they are called by their names."""

    def room(self) -> int | None:
        """Return how many experiments it has place for by now; None: for as many as were asked for."""
        return None

    def start(self, description: Description) -> None:
        """Start an experiment, and do not wait for it."""

    def poll(self, name: str) -> Phase:
        """Return what it is at."""

    def report(self, name: str) -> list[tuple[int, float]]:
        """Return each epoch so far, and its validation accuracy."""

    def stop(self, name: str) -> None:
        """End it, with all that it has started."""

    def collect(self, name: str) -> Ending:
        """Bring its commit here once it has ended or was stopped, remove the rest of it, and return how it ended."""

    def check(self, description: Description, commit: str) -> None:
        """Raise InputError if a commit is not what the experiment would come to: it has other params or code."""

    def clear(self) -> None:
        """End and remove all of the sweep, also what a killed process of it left."""

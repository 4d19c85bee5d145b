"""What a sweep shows: a live table on a terminal, lines elsewhere, and a report over the seeds in the end."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stages.base.text import harmless
from tools.statistics import mean_interval
from tools.sweep.experiments import Experiment, Metrics, State, ranked


class Progress:
    """Shows how far the experiments are."""

    def __init__(self, name: str, total: int, jobs: int, experiments: Sequence[Experiment]) -> None:
        self._name, self.total, self._jobs, self._experiments = name, total, jobs, experiments
        self._console = Console()

    def live(self) -> AbstractContextManager[object]:
        """Return what shows the live table while it is entered; nothing where there is no terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(get_renderable=self._table, console=self._console, refresh_per_second=2, transient=True)

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self._console.print(Text(harmless(text)), soft_wrap=True)

    def summary(self) -> str:
        """Return done, running, failed, best so far and the time left in one line."""
        count = {state: sum(e.state is state for e in self._experiments) for state in State}
        parts = [
            f"sweep {self._name}: {count[State.DONE]} of {self.total} done",
            f"{count[State.RUNNING]} running",
            *(f"{count[state]} {state}" for state in (State.FAILED, State.PRUNED) if count[state]),
        ]
        for best, metrics in ranked(self._experiments)[:1]:
            parts.append(f"best {best.name} with validation accuracy {metrics.valid_accuracy:.4f}")
        if times := [e.seconds for e in self._experiments if e.state is State.DONE and e.seconds]:
            left = self.total - count[State.DONE] - count[State.FAILED] - count[State.PRUNED]
            parts.append(f"about {_duration(left * float(np.mean(times)) / self._jobs)} left")
        return ", ".join(parts)

    def _table(self) -> RenderableType:
        table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
        for experiment in self._experiments:
            if experiment.state is State.RUNNING:
                again = f"attempt {experiment.attempts}" if experiment.attempts > 1 else ""
                table.add_row(experiment.name, "running", str(_duration(time.monotonic() - experiment.started)), again)
        for experiment, metrics in ranked(self._experiments)[:8]:
            table.add_row(experiment.name, "done", f"validation {metrics.valid_accuracy:.4f}", "")
        return Group(Text(self.summary()), table)


def report(name: str, experiments: Sequence[Experiment]) -> str | None:
    """Print mean and 95 % interval over the seeds for each configuration, and what failed.

    Return the name of the best experiment: of the configuration with the best mean by validation, its best. Only those
    whose seeds were all run count; None if they were validated on different images.
    """
    console = Console(width=None if Console().is_terminal else 200)
    groups: dict[int, list[tuple[Experiment, Metrics]]] = {}
    for experiment, metrics in ranked(experiments):
        groups.setdefault(experiment.number, []).append((experiment, metrics))
    incomplete = {experiment.number for experiment in experiments if experiment.state is not State.DONE}
    numbers = sorted(
        sorted(groups),
        key=lambda number: (number not in incomplete, *np.mean([m.rank for _, m in groups[number]], axis=0)),
        reverse=True,
    )

    varied = list(dict.fromkeys(key for experiment in experiments for key in experiment.values))
    table = Table(box=None, padding=(0, 3, 0, 0), title=f"sweep {name}", title_justify="left")
    for title in (*varied, "seeds", "validation accuracy", "test accuracy"):
        table.add_column(title)
    for number in numbers:
        (experiment, _), *_ = group = groups[number]
        valid, test = [m.valid_accuracy for _, m in group], [m.test_accuracy for _, m in group]
        cells = [*(experiment.values[key] for key in varied), str(len(group)), _mean(valid), _mean(test)]
        table.add_row(*(Text(harmless(cell)) for cell in cells))
    console.print(table)
    for experiment in experiments:
        if experiment.state in (State.FAILED, State.PRUNED) and experiment.ending:
            line = f"{experiment.state}: {experiment.name}  {experiment.ending.reason}"
            console.print(Text(harmless(line)), soft_wrap=True)
    if any(key.startswith("prepare.") for key in varied):
        console.print("\nNo best one is named: experiments with other data were validated on other images.")
        return None
    if not numbers or numbers[0] in incomplete:
        return None
    best = groups[numbers[0]][0][0].name
    console.print(Text(f"\nThe best by validation is {best}. To take it over:\n\n    dvc exp apply {best}\n"))
    return best


def _mean(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    return f"{mean:.4f}" if math.isnan(half) else f"{mean:.4f} ± {half:.4f}"


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))

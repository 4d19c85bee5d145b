"""What a sweep shows: a live table on a terminal, lines elsewhere, and a report over the seeds in the end."""

import math
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tools.statistics import mean_interval
from tools.sweep.experiments import Experiment


class Progress:
    """Shows how far the experiments are. As a context manager it ends the live table."""

    def __init__(self, name: str, total: int, jobs: int, experiments: Sequence[Experiment]) -> None:
        self._name, self.total, self._jobs, self._experiments = name, total, jobs, experiments
        self._console = Console()
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self._console.print(Text(text), soft_wrap=True)

    def summary(self) -> str:
        """Return done, running, failed, best so far and the time left in one line."""
        count = {
            state: sum(e.state == state for e in self._experiments) for state in ("done", "running", "failed", "pruned")
        }
        parts = [f"sweep {self._name}: {count['done']} of {self.total} done, {count['running']} running"]
        parts += [f"{count[state]} {state}" for state in ("failed", "pruned") if count[state]]
        if found := [e for e in self._experiments if e.outcome]:
            top = max(found, key=_validation)
            assert top.outcome is not None
            parts.append(f"best {top.name} with validation accuracy {top.outcome.valid_accuracy:.4f}")
        if times := [e.seconds for e in self._experiments if e.state == "done" and e.seconds]:
            left = self.total - count["done"] - count["failed"] - count["pruned"]
            parts.append(f"about {_duration(left * float(np.mean(times)) / self._jobs)} left")
        return ", ".join(parts)

    def _table(self) -> RenderableType:
        table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
        for experiment in self._experiments:
            if experiment.state == "running":
                again = f"attempt {experiment.attempts}" if experiment.attempts > 1 else ""
                table.add_row(experiment.name, "running", _duration(time.monotonic() - experiment.started), again)
        done = sorted((e for e in self._experiments if e.outcome), key=_validation, reverse=True)
        for experiment in done[:8]:
            assert experiment.outcome is not None
            table.add_row(experiment.name, "done", f"validation {experiment.outcome.valid_accuracy:.4f}", "")
        return Group(Text(self.summary()), table)


def report(name: str, experiments: Sequence[Experiment]) -> str | None:
    """Print mean and 95 % interval over the seeds for each configuration, and what failed.

    Return the name of the best experiment: of the configuration with the best mean by validation, its best. Of those
    alone of which every seed was run; none if they were validated on different images.
    """
    console = Console(width=None if Console().is_terminal else 200)
    groups: dict[int, list[Experiment]] = {}
    incomplete = {experiment.number for experiment in experiments if not experiment.outcome}
    for experiment in experiments:
        if experiment.outcome:
            groups.setdefault(experiment.number, []).append(experiment)
    ranked = sorted(
        groups.values(),
        key=lambda group: (group[0].number not in incomplete, *np.mean([_validation(e) for e in group], axis=0)),
        reverse=True,
    )

    varied = list(dict.fromkeys(key for experiment in experiments for key in experiment.values))
    table = Table(box=None, padding=(0, 3, 0, 0), title=f"sweep {name}", title_justify="left")
    for title in (*varied, "seeds", "validation accuracy", "test accuracy"):
        table.add_column(title)
    for group in ranked:
        outcomes = [e.outcome for e in group if e.outcome]
        figures = ([o.valid_accuracy for o in outcomes], [o.test_accuracy for o in outcomes])
        cells = [*(group[0].values[key] for key in varied), str(len(group)), *map(_mean, figures)]
        table.add_row(*map(Text, cells))
    console.print(table)
    for experiment in experiments:
        if experiment.state in ("failed", "pruned"):
            console.print(Text(f"{experiment.state}: {experiment.name}  {experiment.reason}"), soft_wrap=True)
    if any(key.startswith("prepare.") for key in varied):
        console.print("\nNone is called the best: those with other data were validated on other images.")
        return None
    if not ranked or ranked[0][0].number in incomplete:
        return None
    best = max(ranked[0], key=_validation).name
    console.print(Text(f"\nThe best by validation is {best}. To take it over:\n\n    dvc exp apply {best}\n"))
    return best


def _validation(experiment: Experiment) -> tuple[float, float]:
    """Return what experiments are chosen by: validation accuracy, and of equal ones the lower validation loss."""
    assert experiment.outcome is not None
    return experiment.outcome.valid_accuracy, -experiment.outcome.valid_loss


def _mean(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    return f"{mean:.4f}" if math.isnan(half) else f"{mean:.4f} ± {half:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

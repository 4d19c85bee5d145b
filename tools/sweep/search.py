"""Where a sweep's configurations come from: a grid, or Optuna, which is told what came of them and proposes others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base.errors import InputError
from tools.sweep.overrides import Axis, grid

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class Proposal:
    """A configuration to try."""

    number: int
    values: dict[str, str]  # by key
    pruned: bool = False  # when the search was run before


class Grid:
    """Every combination of the values."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self._proposals = [Proposal(number, values) for number, values in enumerate(grid(axes))]
        self.size = len(self._proposals)

    def ask(self) -> Proposal | None:
        """Return the next configuration, None after the last one."""
        return self._proposals.pop(0) if self._proposals else None

    def is_hopeless(self, _number: int, _step: int, _valid_accuracy: float) -> bool:
        """Return False: every combination is run to its end."""
        return False

    def tell(self, number: int, valid_accuracy: float | None, pruned: bool = False) -> None:
        """Do nothing: no proposal depends on another's result."""


class Search:
    """A study of `size` trials, kept in the file `journal`, from which it goes on however it ended.

    Tree-structured Parzen estimators propose (Bergstra et al., NeurIPS 2011). A trial is hopeless if its
    best validation accuracy up to some epoch, not the first, is below the median of the others' at that epoch. Raises
    InputError without Optuna.
    """

    def __init__(self, axes: Sequence[Axis], size: int, journal: Path) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise InputError("--search needs Optuna: pip install -e '.[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self.size, self._states = axes, size, optuna.trial.TrialState
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        )
        self._earlier = [optuna.trial.Trial(self._study, trial._trial_id) for trial in self._study.get_trials()]
        # A seed of its own each time, since the draws do not go on where they stopped.
        self._study.sampler = optuna.samplers.TPESampler(seed=len(self._earlier), n_startup_trials=5)
        self._trials: dict[int, Trial] = {}

    def ask(self) -> Proposal | None:
        """Return the next configuration, those that were proposed before first; None after the last one."""
        if len(self._trials) == self.size:
            return None
        trial = self._earlier.pop(0) if self._earlier else self._study.ask()
        self._trials[trial.number] = trial
        pruned = self._frozen(trial.number).state == self._states.PRUNED
        return Proposal(trial.number, {axis.key: _suggest(trial, axis) for axis in self._axes}, pruned)

    def is_hopeless(self, number: int, step: int, valid_accuracy: float) -> bool:
        """Note a trial's validation accuracy at `step`, and return whether to stop it."""
        trial = self._trials[number]
        if self._frozen(number).state.is_finished():  # one that failed earlier, or whose experiment was removed
            return False
        if step not in self._frozen(number).intermediate_values:  # from an attempt that was interrupted
            trial.report(valid_accuracy, step)
        return trial.should_prune()

    def tell(self, number: int, valid_accuracy: float | None, pruned: bool = False) -> None:
        """End a trial; without a value as failed or pruned. One that had ended before stays as it is."""
        if not self._frozen(number).state.is_finished():
            without = self._states.PRUNED if pruned else self._states.FAIL
            state = without if valid_accuracy is None else self._states.COMPLETE
            self._study.tell(self._trials[number], valid_accuracy, state=state)

    def _frozen(self, number: int) -> "FrozenTrial":
        return self._study.get_trials(deepcopy=False)[number]


def _suggest(trial: "Trial", axis: Axis) -> str:
    interval = axis.interval
    if interval is None:
        return axis.values[0] if len(axis.values) == 1 else str(trial.suggest_categorical(axis.key, axis.values))
    if isinstance(interval.low, int) and isinstance(interval.high, int):
        return str(trial.suggest_int(axis.key, interval.low, interval.high, log=interval.log))
    value = trial.suggest_float(axis.key, interval.low, interval.high, log=interval.log)
    # As many digits as tell a hundredth of a percent, of the value or of the interval: names are made of them.
    finest = min(abs(value) or math.inf, interval.high - interval.low)
    rounded = round(value, 3 - math.floor(math.log10(finest)))
    return f"{min(max(rounded, interval.low), interval.high):.12g}"

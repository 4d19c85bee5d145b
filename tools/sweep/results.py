"""What DVC's experiments and MLflow's runs hold of a sweep."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pandas as pd

from stages.base.errors import InputError
from stages.base.files import replacing
from stages.base.yaml import read_yaml
from stages.tracking.git import git
from stages.tracking.provenance import SWEEP_ATTEMPT_TAG
from stages.tracking.result import EVALUATION_TAG
from stages.tracking.store import Store
from stages.training.selection import rank_of
from tools import recorded
from tools.sweep.experiments import Metrics
from tools.sweep.guard import Guard
from tools.sweep.plan import FOLDER
from tools.sync import Sync

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run


def commits_of(baseline: str) -> dict[str, str]:
    """Return the commit of each experiment that started from the commit `baseline`, by its name."""
    return {found.name: found.commit for found in recorded.experiments() if found.baseline == baseline}


def taken(name: str, difference: str) -> InputError:
    """Return the error for an experiment that is not the one that was to be run."""
    return InputError(
        f"there is an experiment {name} with other {difference}; dvc exp remove {name}, or take another --name"
    )


def metrics_of(commit: str) -> Metrics:
    """Return what the metrics files of an experiment's commit hold."""
    epochs = pd.read_csv(StringIO(git("show", f"{commit}:./metrics/train.csv"))).to_dict("records")
    results = json.loads(git("show", f"{commit}:./metrics/evaluate.json"))
    params = read_yaml(git("show", f"{commit}:./params.yaml").encode(), "params.yaml")
    best = max(epochs, key=partial(rank_of, monitor=params["train"].get("monitor", "accuracy")))
    return Metrics(best["valid/accuracy"], best["valid/loss"], results["accuracy"])


def owner_of(sweep: str) -> str:
    """Return what tells this clone's sweep from others of its name, wherever its experiments run; it is written down.

    Its experiments' attempts have a tag that begins with it, so that the runs of those that died are known again.
    """
    file = FOLDER / sweep / "owner"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8")


class SweepRuns:
    """The runs of a sweep's experiments. Where the store fails, it warns once and does nothing from then on.

    The experiments start from the commit `baseline`, and their attempts are the `owner`'s.
    """

    def __init__(self, sweep: str, baseline: str, owner: str) -> None:
        self._sweep, self._baseline, self._store = sweep, baseline, Store.from_environment()
        self.uri = self._store.uri
        self._guard = Guard(self._store)
        # Others may have a sweep of the same name in the same store.
        self._ours = {"sweep": sweep, "dvc.baseline_rev": baseline}
        self._attempts = f"{owner}/"
        self._guard.attempt(self._store.client, None)  # makes the store, before many processes want it at once

    def close_running(self, name: str = "") -> None:
        """Mark runs as KILLED that say they are running, of the experiment `name` or of all; none of them is."""
        for run in self._running(name):
            self._guard.attempt(partial(self._store.client().set_terminated, run.info.run_id, "KILLED"), None)

    def end_superseded(self, name: str) -> None:
        """Mark all finished runs of the experiment `name` but the latest as KILLED: their attempts died with a node.

        Between the end of a training and the arrival of its results an attempt may die; the next trains it again.
        """
        for run in self._of(name, "FINISHED")[1:]:
            self._guard.attempt(partial(self._store.client().set_terminated, run.info.run_id, "KILLED"), None)

    def epochs(self, name: str) -> list[tuple[int, float]]:
        """Return each epoch so far of the running experiment `name`, and its validation accuracy."""
        metrics: list[Metric] = []
        for run in self._running(name):
            read = partial(self._store.client().get_metric_history, run.info.run_id, "valid/accuracy")
            metrics += self._guard.attempt(read, [])
        return [(metric.step, metric.value) for metric in metrics]

    def evaluated(self) -> dict[str, str]:
        """Return the ids of the evaluated runs by the names of their experiments, of several the latest."""
        latest_first = self._find(tags=self._ours, having=[EVALUATION_TAG])
        return {run.data.tags.get("dvc.exp_name", ""): run.info.run_id for run in reversed(latest_first)}

    def add_missing(self, names: set[str]) -> Iterator[str]:
        """Give a run to those of the experiments that ran nothing, since DVC took every stage from its cache.

        Yield a line about each of them.
        """
        missing = names - self.evaluated().keys()
        try:
            sync = Sync(Store.from_environment(), dry_run=False) if missing else None
            for result in recorded.experiments():
                if sync and result.name in missing and result.baseline == self._baseline:
                    outcome, detail = sync.outcome(replace(result, sweep=self._sweep))
                    yield f"{result.name}: run in MLflow {outcome}{detail}"
        except InputError as error:
            yield f"warning: {error}"

    def _running(self, name: str) -> "list[Run]":
        return self._of(name, "RUNNING")

    def _of(self, name: str, status: str) -> "list[Run]":
        """Return the runs of the sweep's attempts with this status, the latest first: of one experiment, or all."""
        tags = {"dvc.exp_name": name} if name else {}
        return self._find(tags=tags, prefixes={SWEEP_ATTEMPT_TAG: self._attempts}, status=status)

    def _find(self, **conditions: Any) -> "list[Run]":
        return self._guard.attempt(lambda: self._store.search(**conditions), [])

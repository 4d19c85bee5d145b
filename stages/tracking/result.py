"""The files of a result: what a run in MLflow is made of."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from stages.base.files import sha256
from stages.base.yaml import read_yaml

if TYPE_CHECKING:
    from stages.nets.weights import Description

# Tags that tie a run to the files of its result, by which it is found again.
WEIGHTS_TAG, EVALUATION_TAG = "weights.sha256", "evaluation.sha256"
RECORD_TAG, RECORD = "record.version", 1  # of tags, params and artifacts; a later one is refused
# The journals that a run, and its evaluation, were brought from: it is not brought twice.
JOURNAL_TAG, EVALUATED_BY_TAG = "journal", "journal.evaluation"
NOTE_TAG = "mlflow.note.content"  # MLflow shows it as the run's description
# A training that was killed and tried again is one run: which it is, how often it was tried, and where it went on.
TRAINING_TAG, ATTEMPT_TAG, RESUMED_TAG = "training.id", "training.attempt", "resumed.epoch"
TAKEN_UP_TAG = "training.taken_up"  # its process was killed, and its result may be another's
USED = "used."  # before the names of a run's params that are not params.yaml's, but what torch was given in the end
PATCH = "git.patch"  # the artifact that has what differed from the commit
# When tools.tidy removed its weights and its model, and the digest by which dvc.lock names those weights.
TIDIED_TAG, TIDIED_WEIGHTS_TAG = "tidied", "tidied.weights"
WEIGHTS = "weights"  # the folder of a run's artifacts that holds its weights file


@dataclass(frozen=True)
class ResultFiles:
    """The files of one training and its evaluation."""

    weights: Path
    prepared: Path  # of this folder dataset.json alone
    history: Path
    results: Path
    plots: Path
    root: Path = Path()  # of params.yaml, dvc.yaml and dvc.lock

    @cached_property
    def digests(self) -> dict[str, str]:
        """The tags of the training and of its evaluation: digests of what they wrote."""
        evaluation = sha256(self.results, *sorted(self.plots.rglob("*.*")))
        return {WEIGHTS_TAG: sha256(self.weights), EVALUATION_TAG: evaluation}

    def metrics(self, description: "Description") -> dict[str, float]:
        """Return the metrics of the evaluation, and of the epoch whose weights were kept."""
        evaluated = json.loads(self.results.read_text(encoding="utf-8"))
        return {f"test/{name}": value for name, value in evaluated.items() if name != "valid_accuracy"} | {
            "best/valid_accuracy": description.valid_accuracy,
            "best/valid_loss": description.valid_loss,
            "epoch/best": description.epoch,  # not under best/: pages of MLflow open with the first name
        }

    def epochs(self) -> list[dict[str, float]]:
        """Return the rows of the history, one an epoch."""
        import pandas as pd

        rows = pd.read_csv(self.history).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in rows]

    def lock(self) -> str:
        """Return dvc.lock as it is while evaluate runs: DVC has not written that stage's new entry yet.

        It is "" where there is none, since a stage was run by hand.
        """
        path = self.root / "dvc.lock"
        if not path.exists():
            return ""
        read_yaml(path.read_bytes(), str(path))
        yaml = YAML()  # keeps the order, and all else as it stands
        lock = yaml.load(path.read_text(encoding="utf-8"))
        lock["stages"].pop("evaluate", None)
        text = io.StringIO()
        yaml.dump(lock, text)
        return text.getvalue()

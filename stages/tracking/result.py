"""What DVC records of one training and its evaluation: the files that its run in MLflow is made of."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML
from torch import nn

from stages.base.files import sha256
from stages.batches.prepared import DatasetInfo
from stages.nets.weights import load_weights

# Tags that tie a run to what it made, by which it is found again.
WEIGHTS_TAG, EVALUATION_TAG = "weights.sha256", "evaluation.sha256"


@dataclass(frozen=True)
class Contents:
    """What the files hold."""

    data: DatasetInfo
    classifier: nn.Module  # takes uint8 images (n, h, w) or (n, 3, h, w), gives scores (n, n_classes)
    metrics: dict[str, float]
    history: list[dict[str, float]]  # one row an epoch
    lock: str  # dvc.lock as it is while evaluate runs; "" where there is none, since a stage was run by hand


@dataclass(frozen=True)
class ResultFiles:
    """The files."""

    weights: Path
    prepared: Path  # of this folder dataset.json alone
    history: Path
    results: Path
    plots: Path
    root: Path = Path()  # of params.yaml, dvc.yaml and dvc.lock

    def digests(self) -> dict[str, str]:
        """Return the tags of the training and of its evaluation."""
        return {
            WEIGHTS_TAG: sha256(self.weights),
            EVALUATION_TAG: sha256(self.results, *sorted(self.plots.rglob("*.*"))),
        }

    def read(self) -> Contents:
        """Return what the files hold. Raises InputError if weights or dataset.json are not as written today."""
        net, description = load_weights(self.weights)
        evaluated = json.loads(self.results.read_text(encoding="utf-8"))
        return Contents(
            data=DatasetInfo(self.prepared),
            classifier=description.classifier(net),
            metrics={f"test/{name}": value for name, value in evaluated.items() if name != "valid_accuracy"}
            | {
                "best/epoch": description.epoch,
                "best/valid_accuracy": description.valid_accuracy,
                "best/valid_loss": description.valid_loss,
            },
            history=[
                {str(name): value for name, value in row.items()}
                for row in pd.read_csv(self.history).to_dict("records")
            ],
            lock=lock_without("evaluate", self.root / "dvc.lock"),
        )


def lock_without(stage: str, path: Path) -> str:
    """Return dvc.lock without the entry of `stage`: while that runs, DVC has not written its new entry yet."""
    if not path.exists():
        return ""
    yaml = YAML()
    lock = yaml.load(path.read_text(encoding="utf-8"))
    lock["stages"].pop(stage, None)
    text = io.StringIO()
    yaml.dump(lock, text)
    return text.getvalue()

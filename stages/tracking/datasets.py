"""Splits of the prepared set as MLflow records datasets."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from stages.batches.prepared import DatasetInfo

CONTEXTS = {"train": "training", "valid": "validation", "test": "testing"}


def dataset_record(data: "DatasetInfo", split: str) -> dict[str, str]:
    """Return what is recorded of a split, with the digest of all its images and labels."""
    profile: dict[str, Any] = {"num_rows": data.sizes[split], "sha256": data.sha256[split]}
    if data.counts:
        profile["counts"] = dict(zip(data.classes, data.counts[split], strict=True))
    return {
        "context": CONTEXTS[split],
        "name": f"{data.source} {split}",
        "digest": data.sha256[split][:32],  # MLflow takes 36 characters at most
        "profile": json.dumps(profile),
    }


def dataset_input(record: dict[str, str]) -> "DatasetInput":
    """Return a record as MLflow takes it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record["name"],
        digest=record["digest"],
        source_type="local",
        source=json.dumps({"uri": "data/prepared"}),
        profile=record["profile"],
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])

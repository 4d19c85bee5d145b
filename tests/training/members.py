"""A process of a group that trains one net after the other, since to start it takes longer than such a training.

    python -m tests.training.members trainings.json 2

The file has {name: {"params", "prepared", "exact"}}; what each makes comes into the folder 2/NAME beside it.
"""

import json
import os
import sys
from pathlib import Path

import torch

from stages.base import cli
from stages.base.params import TrainParams
from stages.tracking.tracker import Tracker
from stages.train import train
from stages.training.launcher import is_member, joined, launch


def main() -> None:
    trainings, processes = Path(sys.argv[1]), int(sys.argv[2])
    if processes > 1 and not is_member(os.environ, processes):
        launch("tests.training.members", sys.argv[1:], processes)
        return
    content = json.loads(trainings.read_text())
    of = {
        name: TrainParams.model_validate_json(json.dumps(training["params"] | {"processes": processes}))
        for name, training in content.items()
    }
    first = next(iter(of.values()))
    with joined(first, {"folder": trainings.parent / str(processes)}) as (group, outputs):
        for name, params in of.items():
            training = content[name]
            compute_exactly(training["exact"])
            weights, history = (outputs["folder"] / name / file for file in ("net.safetensors", "train.csv"))
            train(params, Path(training["prepared"]), weights, history, Tracker.off(), group)


def compute_exactly(exact: bool, float32=torch.Tensor.float) -> None:  # type: ignore[no-untyped-def]
    """Let all be computed in float64, in which the orders of a sum hardly differ."""
    torch.set_default_dtype(torch.float64 if exact else torch.float32)
    torch.Tensor.float = torch.Tensor.double if exact else float32  # type: ignore[method-assign]


if __name__ == "__main__":
    cli.run(main)

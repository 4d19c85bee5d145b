"""This project: its own train, from the prepared set to the weights on disk, without a run in MLflow."""

from collections.abc import Iterator
from pathlib import Path

from stages import train as stage  # isort: skip: first, for the limits of the CPU's instructions

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bench.peers.run import Run, main
from stages.base.params import load_params
from stages.batches.loader import Loader
from stages.batches.prepared import Prepared
from stages.nets.prediction import predict
from stages.nets.weights import load_weights
from stages.tracking.tracker import Tracker


def train(run: Run) -> npt.NDArray[np.int64]:
    """Return the predicted class of each test image. The current folder's params.yaml is that of the training."""

    class Noted(Loader):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in super().epoch(epoch, start):
                yield batch
                run.note()

    vars(stage)["Loader"] = Noted
    prepared, weights = run.folder / "prepared", Path("net.safetensors")
    stage.train(load_params().train, prepared, weights, Path("train.csv"), Tracker.off())
    run.note()
    net, description = load_weights(weights)
    scores = predict(description.classifier(net), Prepared(prepared).split("test", next(net.parameters()).device))
    predicted: npt.NDArray[np.int64] = scores.argmax(1).numpy()
    return predicted


if __name__ == "__main__":
    main(train)

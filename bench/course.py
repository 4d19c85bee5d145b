"""The course's two solutions on Fashion-MNIST, with the settings of its notebooks: test accuracy beside theirs.

    python -m bench.course

Trains each for 30 epochs of batches of 20 with SGD at a learning rate of 0.001, as the notebooks do; theirs saw 60,000
images and no validation, these see 54,000, normalised. Fifteen minutes on two cores of an x86-64 server.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from stages import evaluate, prepare, train
from stages.base import cli
from stages.tracking.tracker import Tracker
from tools.sweep import overrides

SETTINGS = [
    "prepare.source=fashion_mnist",
    "train.loss.name=NLLLoss",
    "train.optimizer.name=SGD",
    "train.optimizer.lr=0.001",
    "train.schedule.name=ConstantLR",
    "train.batch_size=20",
    "train.device=cpu",
]
# Name: momentum, and the test accuracy that the notebook shows.
SOLUTIONS = {"course_1": (0.0, 0.7461), "course_2": (0.9, 0.8781)}


def main() -> None:
    parser = cli.parser("bench.course", __doc__)
    parser.add_argument("--epochs", type=int, default=30, help="default 30")
    epochs = parser.parse_args().epochs
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare.prepare(overrides.check(SETTINGS).prepare, folder / "prepared")
        for net, (momentum, theirs) in SOLUTIONS.items():
            own = [f"train.net.name={net}", f"+train.optimizer.arguments.SGD.momentum={momentum}"]
            params = overrides.check([*SETTINGS, *own, f"train.epochs={epochs}"])
            weights, history, results = folder / "net", folder / "train.csv", folder / "evaluate.json"
            train.train(params.train, folder / "prepared", weights, history, Tracker.off())
            evaluate.evaluate(params, weights, folder / "prepared", history, results, folder / "plots", Tracker.off())
            accuracy = json.loads(results.read_text(encoding="utf-8"))["accuracy"]
            print(f"{net}: {accuracy:.4f} after {epochs} epochs; the notebook's {theirs}")


if __name__ == "__main__":
    cli.run(main)

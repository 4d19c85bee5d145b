"""Trains the digits with every loss, optimizer and schedule that params.yaml can name, and writes docs/choices.md.

    python -m bench.choices docs/choices.md

Everything else stays as params.yaml has it, and each choice has its own defaults. 150 trainings take 3 minutes on two
cores of an x86-64 server.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from stages import prepare, train
from stages.base import cli
from stages.base.files import replacing
from stages.base.params import load_params
from stages.batches.prepared import Prepared
from stages.nets.prediction import predict
from stages.nets.weights import load_weights
from stages.tracking.tracker import Tracker
from stages.training import losses, metrics, optimizers, schedules
from tools.sweep import overrides

SEEDS = (0, 1, 2)
HEAD = """# Losses, optimizers and schedules by name

What `train.loss.name`, `train.optimizer.name` and `train.schedule.name` in `params.yaml` accept: the classes of torch
that can train a classifier of images. Each has defaults that suit the Net, so that naming it is enough; `arguments`
changes them. What a training used in the end, torch's own defaults included, is in its run as `used.optimizer.lr` and
so on, and in the weights file; `tools.compare` compares it. The figures are the test accuracy on the digits, lowest and
highest of seeds 0 to 2, with everything else as committed. `python -m bench.choices docs/choices.md` measures them anew
and writes this file.
"""
LOSSES = """
## Losses of torch.nn

The Net's scores pass what stands under *fed with* on their way to the loss, and the labels become the *targets*. The
value is the mean over the images; where the class gives one value for each score, these are summed over the classes.
With `output: auto` the Net ends in what stands under *Net ends in*: its ReLU, or plain scores for those losses to which
the sign or the size of a single score means something, so that a score must be able to go below zero. MixUp and CutMix
need a loss whose targets can be shares of the classes: one-hot, +1 and -1, or CrossEntropyLoss.
"""
OPTIMIZERS = """
## Optimizers of torch.optim

With CrossEntropyLoss and OneCycleLR, of which the learning rate is the peak. Muon takes the matrices, and AdamW, with
the same learning rate and AdamW's own arguments, all other parameters. LBFGS evaluates each batch several times, so its
training loss is the mean over these, and it takes ten times as long.
"""
SCHEDULES = """
## Schedules of torch.optim.lr_scheduler

With CrossEntropyLoss and SGD. As in torch's documentation, OneCycleLR and CyclicLR advance after every batch and the
others after every epoch; that is also what their arguments count. The defaults follow from the length of the training:
here of 30 epochs of 20 batches.
"""


def main() -> None:
    path = cli.paths("bench.choices", __doc__, table="file to write, e.g. docs/choices.md")["table"]
    two_optimizers = ("SGD", "AdamW")
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare.prepare(load_params().prepare, prepared)
        trained = [(loss, optimizer, "OneCycleLR") for loss in losses.LOSSES for optimizer in two_optimizers]
        trained += [("CrossEntropyLoss", optimizer, "OneCycleLR") for optimizer in optimizers.OPTIMIZERS]
        trained += [("CrossEntropyLoss", "SGD", schedule) for schedule in schedules.SCHEDULES]
        measured = {names: accuracies(prepared, *names) for names in tqdm(dict.fromkeys(trained), unit="choice")}

    text = HEAD + LOSSES
    text += table(
        ["loss", "fed with", "targets", "Net ends in", *(f"with {name}" for name in two_optimizers)],
        [
            [
                name,
                loss.input.name,
                loss.target.name,
                losses.output(name),
                *(measured[name, optimizer, "OneCycleLR"] for optimizer in two_optimizers),
            ]
            for name, loss in losses.LOSSES.items()
        ],
    )
    text += table(["not for this", "why"], list(losses.REFUSED.items()))
    text += OPTIMIZERS
    text += table(
        ["optimizer", "its defaults here", "test accuracy"],
        [
            [name, shown(defaults), measured["CrossEntropyLoss", name, "OneCycleLR"]]
            for name, defaults in optimizers.OPTIMIZERS.items()
        ],
    )
    text += table(["not for this", "why"], list(optimizers.REFUSED.items()))
    text += SCHEDULES
    text += table(
        ["schedule", "after every", "its defaults here", "test accuracy"],
        [[name, *advance(name), measured["CrossEntropyLoss", "SGD", name]] for name in schedules.SCHEDULES],
    )
    text += table(["not for this", "why"], list(schedules.REFUSED.items()))
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def accuracies(prepared: Path, loss: str, optimizer: str, schedule: str) -> str:
    """Return the lowest and the highest test accuracy over the seeds."""
    found = [accuracy(prepared, loss, optimizer, schedule, seed) for seed in SEEDS]
    return f"{min(found):.3f} to {max(found):.3f}"


def accuracy(prepared: Path, loss: str, optimizer: str, schedule: str, seed: int) -> float:
    """Train on the folder `prepared`, and return the test accuracy, from 0 to 1."""
    changes = [f"train.loss.name={loss}", f"train.optimizer.name={optimizer}", f"train.schedule.name={schedule}"]
    params = overrides.check([*changes, f"train.seed={seed}", "train.device=cpu"]).train
    with (
        TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        weights = Path(folder) / "net.safetensors"
        train.train(params, prepared, weights, Path(folder) / "train.csv", Tracker.off())
        net, description = load_weights(weights)
    test = Prepared(prepared).split("test", next(net.parameters()).device)
    scores = predict(description.classifier(net), test)
    return metrics.accuracy(scores.argmax(1), test.labels)


def advance(name: str) -> tuple[str, str]:
    """Return when a schedule advances, and its defaults, for 30 epochs of 20 batches that peak at 0.03."""
    after_batch = name in schedules.AFTER_BATCHES
    return "batch" if after_batch else "epoch", shown(schedules.defaults(600 if after_batch else 30, [0.03])[name])


def shown(arguments: dict[str, object]) -> str:
    """Return arguments as they would stand in params.yaml, numbers to four digits."""
    texts = []
    for name, value in arguments.items():
        if value is not None:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            texts.append(f"{name}: {text.replace('True', 'true').replace('False', 'false')}")
    return ", ".join(texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    cli.run(main)

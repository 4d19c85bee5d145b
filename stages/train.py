"""Train: the Net, with the loss, optimizer and schedule that params.yaml names; the best epoch by validation is kept.

    python -m stages.train data/prepared data/weights models/net.safetensors metrics/train.csv

writes the weights (with what rebuilds the Net) and one row an epoch. The training is a run in MLflow. Of the
training, 30 epochs of digits take 0.5 s and 6 of Fashion-MNIST 25 s, on two cores of an x86-64 server; the start 4 s.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
from torch import Tensor, nn, optim
from tqdm import tqdm

from stages import (
    batches,
    checkpoints,
    command,
    determinism,
    losses,
    metrics,
    nets,
    optimizers,
    options,
    params,
    schedules,
    transforms,
)
from stages.outputs import fixed, replacing, write_csv
from stages.tracking import Tracker


def main() -> None:
    arguments = command.paths(
        "stages.train",
        __doc__,
        prepared="folder that prepare wrote, e.g. data/prepared",
        starts="folder with what train.init_from names, e.g. data/weights",
        weights="file to write, e.g. models/net.safetensors",
        history="file to write, e.g. metrics/train.csv",
    )
    knobs = params.load()
    train(knobs.train, **arguments, tracker=Tracker.from_environment(knobs))


def train(knobs: params.Train, prepared: Path, starts: Path, weights: Path, history: Path, tracker: Tracker) -> None:
    """Write `weights` and `history`. Raises InputError for knobs that do not fit, and if the loss diverges."""
    device = determinism.set_up(knobs.device, knobs.threads)

    # Data: uint8, transformed, and normalised on the way to the net.
    data = batches.Prepared(prepared)
    augment = transforms.training(knobs.transforms.train, len(data.classes))
    evaluation = transforms.evaluation(knobs.transforms.eval)
    channels, side = transforms.check_shapes(augment, evaluation, data)
    normalise = batches.Normalise(data.mean, data.std).to(device)
    training, validation = data.split("train", device), data.split("valid", device)
    loader = batches.Loader(training, knobs.batch_size, knobs.seed, augment, knobs.workers)

    # Net: its input and output sizes follow from the data; its weights from the seed, or from earlier ones.
    plan = checkpoints.planned(knobs, data, channels, side)
    net = plan.untrained()
    checkpoints.start(net, plan.net, starts, knobs.init_from, knobs.new_head)
    nets.check_batch(net, plan.net, len(training.labels) % knobs.batch_size or knobs.batch_size)
    net = net.to(device)

    # Loss, optimizer, schedule, and what is off by default.
    mixed = bool(augment.whole)  # the labels of a batch
    criterion = losses.criterion(**knobs.loss.model_dump(), n_classes=len(data.classes), device=device, mixed=mixed)
    optimizer = optimizers.optimizer(**knobs.optimizer.model_dump(), parameters=net.parameters())
    steps = len(loader)  # an epoch
    schedule = schedules.schedule(**knobs.schedule.model_dump(), optimizer=optimizer, epochs=knobs.epochs, steps=steps)
    precision, clip = options.precision(knobs.precision, device), options.clipping(net, knobs.clip_norm)
    average = options.average(net, knobs.ema_decay)
    tally = metrics.Tally()

    def evaluated(images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, with its gradient in the parameters. LBFGS calls this several times a step."""
        with precision():
            scores = net(normalise(images))  # forward
        loss = criterion(scores.float(), targets)  # loss
        optimizer.zero_grad()
        loss.backward()  # backward
        clip()
        tally.add(loss.item(), scores, targets)
        return loss

    rows: list[dict[str, float]] = []
    best: dict[str, float] = {}
    with (
        tracker.training(data, device) as run,
        determinism.required(f"train.net: {knobs.net.name}"),
        tqdm(total=steps * knobs.epochs, unit="step", disable=None) as progress,
    ):
        started = time.perf_counter()
        for epoch in range(1, knobs.epochs + 1):
            lr = learning_rate(optimizer)
            tally.clear()
            net.train()
            for step, (images, targets) in enumerate(loader.epoch(epoch), start=steps * (epoch - 1) + 1):  # batch
                optimizer.step(partial(evaluated, images, targets))  # type: ignore[arg-type]  # update
                check_finite(tally.recent, step, learning_rate(optimizer))
                schedule.after_batch()
                average.update()
                progress.update()

            scores = batches.scores(nn.Sequential(evaluation, normalise, average.net), validation)
            row = {
                "epoch": epoch,
                "lr": lr,
                "train/loss": tally.loss,
                "train/accuracy": tally.accuracy,
                "valid/loss": criterion(scores, validation.labels).item(),
                "valid/accuracy": metrics.accuracy(scores.argmax(1), validation.labels),
            }
            rows.append({name: fixed(value) for name, value in row.items()})
            check_finite([*tally.recent, row["valid/loss"]], steps * epoch, lr)
            schedule.after_epoch(row["valid/loss"])
            run.log_epoch(rows[-1])
            report(rows[-1], knobs.epochs, progress)
            if not best or rank(rows[-1]) > rank(best):
                best = rows[-1]
                best_weights = {name: tensor.clone() for name, tensor in average.net.state_dict().items()}
            if options.is_over(epoch, int(best["epoch"]), knobs.early_stopping):
                break

        description = replace(
            plan,
            epoch=int(best["epoch"]),
            valid_accuracy=best["valid/accuracy"],
            valid_loss=best["valid/loss"],
        )
        checkpoints.save(weights, best_weights, description)
        with replacing(history) as rewritten:
            write_csv(rewritten, pd.DataFrame(rows).astype({"epoch": int}))
        run.log({"seconds/training": time.perf_counter() - started})
        run.trained(weights)
    print(f"kept epoch {description.epoch}: validation accuracy {description.valid_accuracy:.4f}")


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the learning rate of the step to come."""
    return float(optimizer.param_groups[0]["lr"])


def check_finite(losses: Iterable[float], step: int, lr: float) -> None:
    """Raise InputError if the last of the losses is NaN or infinite."""
    *before, last = losses
    if not math.isfinite(last):
        raise command.InputError(
            f"the loss is {last} at step {step}, with a learning rate of {lr:.4g}; the losses before it:"
            f" {', '.join(f'{loss:.4g}' for loss in before) or 'none'}.\nTry a lower train.optimizer.lr."
        )


def rank(row: dict[str, float]) -> tuple[float, float]:
    """Return what the epochs are chosen by: validation accuracy, and of equal ones the lower validation loss."""
    return row["valid/accuracy"], -row["valid/loss"]


def report(row: dict[str, float], epochs: int, progress: "tqdm[NoReturn]") -> None:
    """Show an epoch's figures: beside the bar on a terminal, as a line elsewhere."""
    epoch = f"epoch {row['epoch']:.0f}/{epochs}"
    progress.set_description_str(epoch)
    progress.set_postfix_str(f"validation accuracy {row['valid/accuracy']:.4f}")
    if progress.disable:
        print(
            f"{epoch}: train loss {row['train/loss']:.4f} accuracy {row['train/accuracy']:.4f},"
            f" validation loss {row['valid/loss']:.4f} accuracy {row['valid/accuracy']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    command.run(main)

"""Train: the Net, with the loss, optimizer and schedule that params.yaml names; the best epoch by validation is kept.

    python -m stages.train data/prepared models/net.safetensors metrics/train.csv

writes the weights (with what rebuilds the Net) and one row an epoch. The training is a run in MLflow. Of the
training, 30 epochs of digits take 0.5 s and 6 of Fashion-MNIST 13 s, on two cores of an x86-64 server; the start 3 s.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
from torch import Tensor, nn, optim
from tqdm import tqdm

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import claimed, placing, rounded, write_csv
from stages.base.params import WEIGHTS, TrainParams, flattened, load_params
from stages.base.processes import check_interrupted
from stages.base.registry import check_names
from stages.base.text import say
from stages.batches import transforms
from stages.batches.loader import Loader
from stages.batches.normalise import Normalise
from stages.batches.prepared import Prepared
from stages.nets.build import check_batch, net_spec
from stages.nets.prediction import predict
from stages.nets.weights import describe, load_pretrained, save_weights
from stages.tracking import data_in_git
from stages.tracking.tracker import Tracker
from stages.training import checkpoints, determinism, losses, memory, metrics, optimizers, options, schedules
from stages.training.selection import should_stop

ROOM = 1 << 16  # bytes of an output besides the weights: what rebuilds the net, or the history of 1,000 epochs


def main() -> None:
    arguments = cli.paths(
        "stages.train",
        __doc__,
        prepared="folder that prepare wrote, e.g. data/prepared",
        weights="file to write, e.g. models/net.safetensors",
        history="file to write, e.g. metrics/train.csv",
    )
    params = load_params()
    data_in_git.check(WEIGHTS / params.train.init_from, os.environ)
    data_in_git.warn_of_lost(params.inputs, os.environ)
    train(params.train, **arguments, tracker=Tracker.from_environment(params))


def train(params: TrainParams, prepared: Path, weights: Path, history: Path, tracker: Tracker) -> None:
    """Write `weights` and `history`. Raises InputError for params that do not fit, and if the loss diverges."""
    device = determinism.set_up(params.device, params.threads, params.determinism)
    memory.keep_freed()
    data = Prepared(prepared)
    check_params(params, data.channels, device)

    # Data: uint8, transformed, and normalised on the way to the net.
    augment = transforms.training(params.transforms.train, len(data.classes))
    evaluation = transforms.evaluation(params.transforms.eval)
    channels, side = transforms.check_shapes(augment, evaluation, data)
    normalise = Normalise(data.mean, data.std).to(device)
    training, validation = data.split("train", device), data.split("valid", device)
    loader = Loader(
        training, params.batch_size, params.seed, augment, params.workers, is_balanced=params.balance == "sampling"
    )

    # Net: its input and output sizes follow from the data; its weights from the seed, or from earlier ones.
    plan = describe(params, data, channels, side, losses.output(params.loss.name))
    net = plan.untrained()
    load_pretrained(net, plan.net, WEIGHTS, params.init_from, params.new_head)
    check_batch(net, plan.net, len(training.labels) % params.batch_size or params.batch_size)
    net = net.to(device)

    # Loss, optimizer, schedule, and what is off by default.
    mixed = bool(augment.per_batch)  # the labels, too
    of_loss = partial(losses.criterion, **params.loss.model_dump(), n_classes=len(data.classes), device=device)
    weighs = losses.class_weights(training.labels, len(data.classes)) if params.balance == "loss" else None
    criterion, unweighted = of_loss(mixed=mixed, class_weights=weighs), of_loss()
    optimizer = optimizers.optimizer(**params.optimizer.model_dump(), parameters=net.parameters())
    steps = len(loader)  # an epoch
    schedule = schedules.schedule(
        **params.schedule.model_dump(), optimizer=optimizer, epochs=params.epochs, steps=steps
    )
    used = {"optimizer": optimizer.defaults, "schedule": schedule.settings, "loss": criterion.settings}
    plan = replace(plan, used=settings_used(used | {"net": plan.net["arguments"]}))
    precision, clip = options.precision(params.precision, device), options.clipping(net, params.clip_norm)
    options.warn_if_slower(params.precision, device, params.determinism, is_compiled=getattr(net, "is_one_pass", False))
    ema = options.ema(net, params.ema_decay)
    totals, reading = metrics.EpochTotals(), options.steps_between_reads(device, optimizer)

    def closure(images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, with its gradient in the parameters. LBFGS calls this several times a step."""
        with precision():
            scores = net(normalise(images))  # forward
        loss = criterion(scores.float(), targets)  # loss
        optimizer.zero_grad()
        loss.backward()  # backward
        clip()
        totals.add(loss, scores, targets)
        return loss

    # What a killed training goes on from.
    parts: dict[str, checkpoints.Stateful] = {
        "net": net,
        "average": ema.averaged,
        "optimizer": optimizer,
        "schedule": schedule.scheduler,
        "totals": totals,
    }
    origin = checkpoints.origin(params, prepared, device)
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    with (
        claimed(weights, history, room=size + ROOM) as (kept, table),
        checkpoints.checkpoint(origin, weights, params.checkpoint_minutes) as checkpoint,
        tracker.training(data, device, plan.used, checkpoint.attempt) as run,
        placing(weights, history),
        determinism.required(f"train.net: {params.net.name}"),
        tqdm(total=steps * params.epochs, unit="step", disable=None) as progress,
    ):
        started = time.perf_counter()
        at = checkpoint.resume(kept, parts)
        run.resumed(at.rows)
        progress.update(steps * (at.epoch - 1) + at.batches)
        while not at.has_ended:
            epoch = at.epoch
            if not at.batches:
                at.lr = learning_rate(optimizer)
                totals.clear()
            net.train()
            read = at.batches  # up to which the losses have been looked at
            for images, targets in loader.epoch(epoch, at.batches):  # batch
                check_interrupted()
                optimizer.step(partial(closure, images, targets))  # type: ignore[arg-type]  # update
                at.batches += 1
                step = steps * (epoch - 1) + at.batches
                is_logged = params.log_steps and step % params.log_steps == 0
                if is_read := is_logged or at.batches % reading == 0 or at.batches == steps:
                    check_finite(totals.recent, step, learning_rate(optimizer), at.batches - read)
                    read = at.batches
                if is_logged:
                    run.log_step(totals.recent[-1], learning_rate(optimizer), step)
                schedule.after_batch()
                ema.update()
                progress.update()
                if is_read:
                    checkpoint.after_batch(at, kept, parts)

            scores = predict(nn.Sequential(evaluation, normalise, ema.net), validation)
            row = {
                "epoch": epoch,
                "train/loss": totals.loss,
                "train/accuracy": totals.accuracy,
                "train/lr": at.lr,
                "valid/loss": unweighted(scores, validation.labels).item(),
                "valid/accuracy": metrics.accuracy(scores.argmax(1), validation.labels),
            } | metrics.monitored(params.monitor, scores.cpu(), validation.labels.cpu())
            check_finite([*totals.recent, row["valid/loss"]], steps * epoch, at.lr)
            schedule.after_epoch(row["valid/loss"])
            row = {name: rounded(value) for name, value in row.items()}
            run.log_epoch(row)
            report(row, params.epochs, progress)
            if at.is_best(row, params.monitor):
                at.best = row
                save_weights(kept, ema.net.state_dict(), plan.scored(row))
            at.rows.append(row)
            at.epoch, at.batches = epoch + 1, 0
            at.has_ended = should_stop(epoch, int(at.best["epoch"]), params.early_stopping) or epoch == params.epochs
            checkpoint.after_epoch(at, kept, parts)

        write_csv(table, pd.DataFrame(at.rows).astype({"epoch": int}))
        run.log({"seconds/training": time.perf_counter() - started})
        run.trained(kept)
    monitored = dict.fromkeys(["accuracy", params.monitor])
    shown = ", ".join(f"{name} {at.best[f'valid/{name}']:.4f}" for name in monitored)
    say(f"kept epoch {at.best['epoch']:.0f}: validation {shown}")


def check_params(params: TrainParams, channels: int, device: torch.device) -> None:
    """Raise InputError for what a training on `device` would refuse, whatever its images are.

    Nothing of these is known but their number of `channels`, so a sweep can ask before any data are prepared.
    """
    transforms.training(params.transforms.train, n_classes=2)
    transforms.evaluation(params.transforms.eval)
    net_spec(**params.net.model_dump(), n_classes=2, channels=channels, image_size=8)
    check_names("train.loss", params.loss.name, params.loss.arguments, losses.LOSSES, losses.REFUSED)
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 2), (2,))]
    optimizer = optimizers.optimizer(**params.optimizer.model_dump(), parameters=parameters)
    schedules.schedule(**params.schedule.model_dump(), optimizer=optimizer, epochs=params.epochs, steps=1)


def settings_used(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the settings by their dotted names, as JSON but for texts; without those that are None, which say nothing.

    Of what is no JSON, such as a function, it is the type: equal trainings are to give equal texts.
    """
    kept = {name: value for name, value in flattened(parts).items() if value is not None}
    as_json = partial(json.dumps, default=lambda value: type(value).__name__)
    return {name: value if isinstance(value, str) else as_json(value) for name, value in kept.items()}


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the learning rate of the step to come."""
    return float(optimizer.param_groups[0]["lr"])


def check_finite(losses: Sequence[float], step: int, lr: float, new: int = 1) -> None:
    """Raise InputError if one of the last `new` losses is NaN or infinite; the very last is that of `step`."""
    for at in range(len(losses) - new, len(losses)):
        if not math.isfinite(losses[at]):
            before = ", ".join(f"{loss:.4g}" for loss in losses[max(0, at - 5) : at])
            raise InputError(
                f"the loss is {losses[at]} at step {step - (len(losses) - 1 - at)}, with a learning rate of {lr:.4g};"
                f" the losses before it: {before or 'none'}.\nTry a lower train.optimizer.lr."
            )


def report(row: dict[str, float], epochs: int, progress: "tqdm[NoReturn]") -> None:
    """Show an epoch's figures: beside the bar on a terminal, as a line elsewhere."""
    epoch = f"epoch {row['epoch']:.0f}/{epochs}"
    progress.set_description_str(epoch)
    progress.set_postfix_str(f"validation accuracy {row['valid/accuracy']:.4f}")
    if progress.disable:
        say(
            f"{epoch}: train loss {row['train/loss']:.4f} accuracy {row['train/accuracy']:.4f},"
            f" validation loss {row['valid/loss']:.4f} accuracy {row['valid/accuracy']:.4f}"
        )


if __name__ == "__main__":
    cli.run(main)

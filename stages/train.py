"""Train: the Net, with the loss, optimizer and schedule that params.yaml names; the best epoch by validation is kept.

    python -m stages.train data/prepared models/net.safetensors metrics/train.csv

writes the weights (with what rebuilds the Net) and one row an epoch. The training is a run in MLflow. Of the
training, 30 epochs of digits take 0.5 s and 6 of Fashion-MNIST 13 s, on two cores of an x86-64 server; the start 3 s.
"""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor, nn, optim
from tqdm import tqdm

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import claimed, placing, rounded, write_csv
from stages.base.params import RANDOM, WEIGHTS, TrainParams, load_params
from stages.base.processes import check_interrupted
from stages.base.registry import check_names
from stages.base.text import say, warn
from stages.batches import transforms
from stages.batches.loader import Loader
from stages.batches.normalise import Normalise
from stages.batches.prepared import Prepared
from stages.nets.build import check_batch, head, net_spec
from stages.nets.net import threads_of_a_step
from stages.nets.prediction import predict
from stages.nets.weights import describe, load_pretrained, read_weights, rebuild, save_weights
from stages.tracking import data_in_git
from stages.tracking.tracker import Tracker
from stages.training import (
    checkpoints,
    checks,
    determinism,
    finetuning,
    launcher,
    losses,
    memory,
    metrics,
    optimizers,
    options,
    parallel,
    schedules,
)
from stages.training.calibration import temperature
from stages.training.parallel import ALONE, Group
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
    if params.train.processes > 1 and not launcher.is_member(os.environ, params.train.processes):
        launcher.launch("stages.train", sys.argv[1:], params.train.processes)
        return
    prepared = arguments.pop("prepared")
    with launcher.joined(params.train, arguments) as (group, outputs):
        data_in_git.check(WEIGHTS / params.train.init_from, os.environ)
        data_in_git.warn_of_lost(params.inputs, os.environ)
        tracker = Tracker.off() if group.rank else Tracker.from_environment(params)
        train(params.train, prepared, **outputs, tracker=tracker, group=group)


def train(
    params: TrainParams, prepared: Path, weights: Path, history: Path, tracker: Tracker, group: Group = ALONE
) -> None:
    """Write `weights` and `history`. Raises InputError for params that do not fit, and if the loss diverges.

    The processes of a `group` each do so, of which the first is the one that is tracked.
    """
    if group.size != params.processes:
        raise InputError(f"train.processes: {params.processes}, but this is a training of {group.size}")
    device = group.device(determinism.set_up(params.device, params.threads, params.determinism))
    memory.keep_freed()
    data = Prepared(prepared)
    check_params(params, data.channels, device)

    # Data: uint8, transformed, and normalised on the way to the net.
    augment = transforms.training(params.transforms.train, len(data.classes))
    evaluation = transforms.evaluation(params.transforms.eval)
    channels, side = transforms.check_shapes(augment, evaluation, data)
    training, validation = data.split("train", device), data.split("valid", device)
    n_valid = len(validation.labels)
    ours = validation.part(group.part(torch.arange(n_valid), n_valid)) if group.divides(n_valid) else validation
    of_a_step = params.batch_size * params.accumulate
    is_balanced = params.balance == "sampling"
    is_mixed = bool(augment.per_batch)  # images and labels
    part = None if group.is_alone else partial(group.part, batch_size=params.batch_size)
    loader = Loader(
        training, of_a_step, params.seed, augment, params.workers, is_balanced, params.overfit, part, is_mixed
    )

    # Net: its input and output sizes follow from the data; its weights from the seed, or from earlier ones.
    plan = describe(params, data, channels, side, losses.output(params.loss.name))
    net = plan.untrained()
    load_pretrained(net, plan.net, WEIGHTS, params.init_from, params.new_head)
    is_frozen = params.freeze != finetuning.NOTHING
    smallest = len(training.labels) % params.batch_size or params.batch_size  # batch of an epoch
    if params.freeze != finetuning.ALL_BUT_HEAD:
        check_batch(net, plan.net, smallest)
    net = parallel.with_common_norms(net, params, device, smallest)
    freezing = finetuning.Freezing(net, head(net, plan.net) if is_frozen else set(), params.freeze)
    if is_frozen and params.init_from == RANDOM:
        warn(f"warning: train.freeze: {params.freeze} keeps random weights, since train.init_from is {RANDOM}")
    net, normalise = net.to(device), Normalise(plan.mean, plan.std).to(device)

    # Loss, optimizer, schedule, and what is off by default.
    of_loss = partial(losses.criterion, **params.loss.model_dump(), n_classes=len(data.classes), device=device)
    weighs = losses.class_weights(training.labels, len(data.classes)) if params.balance == "loss" else None
    criterion, unweighted = of_loss(mixed=is_mixed, class_weights=weighs), of_loss()
    optimizer = optimizers.optimizer(
        **params.optimizer.model_dump(), parameters=net.parameters(), learning=freezing.learning
    )
    steps = len(loader)  # an epoch
    schedule = schedules.schedule(
        **params.schedule.model_dump(),
        optimizer=optimizer,
        epochs=params.epochs,
        steps=steps,
        warmup_epochs=params.warmup_epochs,
    )
    used = {"optimizer": optimizer.defaults, "schedule": schedule.settings, "loss": criterion.settings}
    plan = replace(plan, used=checks.settings_used(used | {"net": plan.net["arguments"]}))
    precision, clip = options.precision(params.precision, device), options.clipping(net, params.clip_norm)
    options.warn_if_slower(params.precision, device, params.determinism, is_compiled=getattr(net, "is_one_pass", False))
    with precision():  # by which a Net is compiled or not
        few_threads = threads_of_a_step(net, params.batch_size // group.size, channels, side)
    ema = options.ema(net, params.ema_decay)
    totals, reading = metrics.EpochTotals(), options.steps_between_reads(device, optimizer)

    def closure(images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a step's images, with its gradient in the parameters. LBFGS calls it several times a step.

        They are one batch, or with train.accumulate several, whose means count by their images.
        """
        optimizer.zero_grad()
        found = []
        for batch, wanted in group.batches(images, targets, params.batch_size):
            with precision():
                scores = net(normalise(batch))  # forward
            loss = criterion(scores.float(), wanted)  # loss
            loss.backward(torch.full_like(loss, len(batch) / len(images)))  # backward
            found.append((loss.detach(), scores.detach(), wanted))
        shown = group.combined(net.parameters(), metrics.step(found) if found else None)
        clip()
        return totals.add(shown)

    # What a killed training goes on from.
    parts: dict[str, checkpoints.Stateful] = {
        "net": net,
        "average": ema.averaged,
        "optimizer": optimizer,
        "schedule": schedule,
        "totals": totals,
    }
    origin = checkpoints.origin(params, prepared, device)
    group.check_same(origin)
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    with (
        claimed(weights, history, room=0 if group.rank else size + ROOM) as (kept, table),
        checkpoints.checkpoint(origin, weights, params.checkpoint_minutes, group) as checkpoint,
        tracker.training(data, device, plan.used, checkpoint.attempt, params.log_system) as run,
        placing(weights, history),
        determinism.required(f"train.net: {params.net.name}"),
        tqdm(total=steps * params.epochs, unit="step", disable=None) as progress,
    ):
        started = time.perf_counter()
        at = checkpoint.resume(kept, parts)
        run.resumed(at.rows, at.batches)
        progress.update(steps * (at.epoch - 1) + at.batches)
        while not at.has_ended:
            epoch = at.epoch
            if not at.batches:
                at.lr = learning_rate(optimizer)
                totals.clear()
            freezing.begin(epoch)
            read = at.batches  # up to which the losses have been looked at
            for images, targets in loader.epoch(epoch, at.batches):  # batch
                check_interrupted()
                group.draw(params.seed, steps * (epoch - 1) + at.batches)
                with few_threads():
                    optimizer.step(partial(closure, images, targets))  # type: ignore[arg-type]  # update
                at.batches += 1
                step = steps * (epoch - 1) + at.batches
                is_logged = params.log_steps and step % params.log_steps == 0
                if is_read := is_logged or at.batches % reading == 0 or at.batches == steps:
                    checks.check_finite(totals.recent, step, learning_rate(optimizer), at.batches - read)
                    read = at.batches
                if is_logged:
                    run.log_step(totals.recent[-1], learning_rate(optimizer), step)
                schedule.after_batch()
                ema.update()
                progress.update()
                if is_read:
                    checkpoint.after_batch(at, kept, parts)

            scores = group.gathered(predict(nn.Sequential(evaluation, normalise, ema.net), ours), n_valid)
            row = {
                "epoch": epoch,
                "train/loss": totals.loss,
                "train/accuracy": totals.accuracy,
                "train/lr": at.lr,
                "valid/loss": unweighted(scores, validation.labels).item(),
                "valid/accuracy": metrics.accuracy(scores.argmax(1), validation.labels),
            } | metrics.monitored(params.monitor, scores.cpu(), validation.labels.cpu())
            row = group.agreed(row)
            checks.check_finite([*totals.recent, row["valid/loss"]], steps * epoch, at.lr)
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

        if criterion.loss.gives_probabilities:
            tensors, _ = read_weights(kept)
            classifier = plan.classifier(rebuild(kept, tensors, plan)).to(device)
            scores = group.gathered(predict(classifier, ours), n_valid)
            plan = replace(plan, temperature=rounded(temperature(scores.cpu(), validation.labels.cpu())))
            save_weights(kept, tensors, plan.scored(at.best))
        write_csv(table, pd.DataFrame(at.rows).astype({"epoch": int}))
        run.log({"seconds/training": time.perf_counter() - started})
        run.trained(kept)
    if params.overfit:
        options.say_overfitting(min(params.overfit, len(training.labels)), at.rows[-1])
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
    parallel.check(params)
    check_names("train.loss", params.loss.name, params.loss.arguments, losses.LOSSES, losses.REFUSED)
    if params.calibrate and not losses.LOSSES[params.loss.name].gives_probabilities:
        raise InputError(f"train.calibrate: true, but {params.loss.name} makes no probabilities of scores")
    for name, epochs in {"freeze": params.freeze, "warmup_epochs": params.warmup_epochs}.items():
        if isinstance(epochs, int) and epochs >= params.epochs:
            raise InputError(f"train.{name}: {epochs}, should be fewer than train.epochs: {params.epochs}")
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 2), (2,))]
    optimizer = optimizers.optimizer(**params.optimizer.model_dump(), parameters=parameters)
    schedules.schedule(**params.schedule.model_dump(), optimizer=optimizer, epochs=params.epochs, steps=1)


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the learning rate of the step to come."""
    return float(optimizer.param_groups[0]["lr"])


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

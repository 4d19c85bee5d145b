"""Evaluate: the trained Net on the test split, which nothing before this has looked at.

    python -m stages.evaluate models/net.safetensors data/prepared metrics/train.csv metrics/evaluate.json plots

writes the metrics and, under plots, predictions.csv (one row a test image), classes.csv (one row a class) and
pictures. The results complete the training's run in MLflow. Digits take 5 s, Fashion-MNIST 8 s, on two
cores of an x86-64 server.
"""

import sys
from pathlib import Path

import pandas as pd
from torch import nn

from stages import batches, checkpoints, command, determinism, losses, metrics, nets, params, pictures
from stages.outputs import fixed, replacing, write_csv, write_json
from stages.record import Record
from stages.tracking import Tracker


def main() -> None:
    arguments = command.paths(
        "stages.evaluate",
        __doc__,
        weights="file that train wrote, e.g. models/net.safetensors",
        prepared="folder that prepare wrote, e.g. data/prepared",
        history="file that train wrote, e.g. metrics/train.csv",
        results="file to write, e.g. metrics/evaluate.json",
        plots="folder to write, e.g. plots",
    )
    knobs = params.load()
    evaluate(knobs, **arguments, tracker=Tracker.from_environment(knobs))


def evaluate(
    knobs: params.Params, weights: Path, prepared: Path, history: Path, results: Path, plots: Path, tracker: Tracker
) -> None:
    """Write `results` and the folder `plots`. Raises InputError if the weights do not fit the prepared set."""
    device = determinism.set_up(knobs.train.device, knobs.train.threads)

    # Data and net. The classifier takes images as they are prepared; its mean and deviation are the training's.
    data = batches.Prepared(prepared)
    net, description = checkpoints.load(weights)
    check_fit(description, data, weights)
    test = data.split("test", device)
    normalise = batches.Normalise(description.mean, description.std)
    classifier = nn.Sequential(normalise, net)
    untrained = nn.Sequential(normalise, description.untrained())

    # Predictions.
    scores = batches.scores(classifier.to(device), test.images).cpu()
    labels, predicted, probabilities = test.labels.cpu(), scores.argmax(1), scores.softmax(1)
    untrained_predicted = batches.scores(untrained.to(device), test.images).cpu().argmax(1)

    # Metrics.
    criterion = losses.criterion(**knobs.train.loss.model_dump(), n_classes=len(data.classes), device=scores.device)
    table = metrics.confusion(predicted, labels, len(data.classes))
    per_class = metrics.per_class(table)
    never_predicted = [name for name, count in zip(data.classes, per_class.predicted, strict=True) if count == 0]
    values = {
        "accuracy": metrics.accuracy(predicted, labels),
        "accuracy_untrained": metrics.accuracy(untrained_predicted, labels),
        "ece": metrics.expected_calibration_error(probabilities, labels, knobs.evaluate.calibration_bins),
        "loss": criterion(scores, labels).item(),
        "macro_f1": per_class.f1.mean().item(),
    }
    values = {name: fixed(value) for name, value in values.items()} | {"never_predicted": len(never_predicted)}

    # Outputs.
    with replacing(results) as partial:
        write_json(partial, values | {"valid_accuracy": description.valid_accuracy})
    with replacing(plots) as partial:
        partial.mkdir()
        predictions = pd.DataFrame(probabilities.numpy(), columns=data.classes)
        predictions.insert(0, "index", test.index.numpy())
        predictions.insert(1, "label", [data.classes[label] for label in labels])
        predictions.insert(2, "predicted", [data.classes[label] for label in predicted])
        write_csv(partial / "predictions.csv", predictions, float_format="%.6f")
        classes = pd.DataFrame({"class": data.classes} | vars(per_class))
        write_csv(partial / "classes.csv", classes)

        drawn = partial / "pictures"
        drawn.mkdir()
        pictures.learning_curves(drawn / "learning_curves.png", pd.read_csv(history), description.epoch)
        pictures.confusion(drawn / "confusion.png", table, data.classes)
        pictures.classes(drawn / "classes.png", classes)
        pictures.mistakes(drawn / "mistakes.png", test.images.cpu(), labels, predicted, probabilities, data.classes)
        training, image = data.split("train", scores.device), test.images[:1].cpu()
        pictures.examples(drawn / "examples.png", training.images, training.labels, data.classes)
        for name, before, after, pooled in nets.activations(net.cpu(), normalise.cpu()(image)):
            pictures.filters(drawn / f"filters_{name}.png", name, net.get_parameter(f"{name}.weight").detach())
            pictures.activations(drawn / f"activations_{name}.png", name, image[0], before[0], after[0], pooled[0])

    tracker.evaluated(Record(weights, prepared, history, results, plots))
    print(f"test accuracy {values['accuracy']:.4f}, before training {values['accuracy_untrained']:.4f}")
    if never_predicted:
        print(f"warning: never predicted: {', '.join(never_predicted)}", file=sys.stderr)


def check_fit(description: checkpoints.Description, data: batches.Prepared, weights: Path) -> None:
    """Raise InputError, naming what differs, if the weights are of another kind of images or other classes."""
    pairs = {
        "classes": (description.classes, data.classes),
        "channels": (description.net["channels"], data.channels),
        "image size": (description.net["image_size"], data.image_size),
    }
    rows = [f"{name}: weights {ours}, prepared {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if rows:
        raise command.InputError("\n  ".join([f"the weights in {weights} do not fit the prepared images:", *rows]))


if __name__ == "__main__":
    command.run(main)

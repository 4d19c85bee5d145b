"""Evaluate: the trained net on the test split, which nothing before this has looked at.

    python -m stages.evaluate models/net.safetensors data/prepared metrics/train.csv metrics/evaluate.json plots

writes the metrics and, under plots, predictions.csv (one row a test image, with its file), classes.csv (one row a
class), confusion.csv (one row for each label and class that its images were predicted as), mistakes.html, pictures, and
report.md, which shows them and says what of it to believe. The results complete the training's run in MLflow. Digits
take 5 s, Fashion-MNIST 8 s, on two cores of an x86-64 server.

Weights from elsewhere, safetensors or a state dict of torch.save, are scored without a history:

    python -m stages.evaluate data/weights/course.pt data/prepared scores/evaluate.json scores/plots

Their net is the one that params.yaml's train.net names, their images are transformed by train.transforms.eval and
normalised as train.normalise has it. Nothing of this goes to MLflow.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from stages.base import cli
from stages.base.errors import InputError, lines, listed
from stages.base.files import SHARES, claimed, placing, rounded, sha256, write_csv, write_json
from stages.base.params import Params, TrainParams, load_params
from stages.base.text import say, warn
from stages.batches import transforms
from stages.batches.prepared import Prepared
from stages.nets.build import convolutions
from stages.nets.net import activations
from stages.nets.prediction import predict, table
from stages.nets.weights import Description, describe, read_weights, rebuild
from stages.report import charts, fonts, layers, mistakes_page, pictures, summary
from stages.report.canvas import save
from stages.tracking.result import ResultFiles
from stages.tracking.tracker import Tracker
from stages.training import calibration, determinism, losses, metrics
from stages.training.metrics import Answers


def main() -> None:
    arguments = cli.paths(
        "stages.evaluate",
        __doc__,
        optional=["history"],
        weights="file that train wrote, e.g. models/net.safetensors, or weights from elsewhere",
        prepared="folder that prepare wrote, e.g. data/prepared",
        history="file that train wrote, e.g. metrics/train.csv; without it nothing is logged",
        results="file to write, e.g. metrics/evaluate.json",
        plots="folder to write, e.g. plots",
    )
    params = load_params()
    evaluate(params, **arguments, tracker=Tracker.from_environment(params))


def evaluate(
    params: Params,
    weights: Path,
    prepared: Path,
    history: Path | None,
    results: Path,
    plots: Path,
    tracker: Tracker,
) -> None:
    """Write `results` and the folder `plots`. Raises InputError if the weights do not fit the prepared set."""
    check_outputs(history, results, plots)
    device = determinism.set_up(params.train.device, params.train.threads, params.train.determinism)

    # Data and net. The classifier takes images as they are prepared; its mean and deviation are the training's.
    data = Prepared(prepared)
    test = data.split("test", device)
    tensors, described = read_weights(weights)
    description = described or outside(params.train, data, weights, history)
    check_fit(description, data, weights)
    if history:
        tracker.expect_evaluation()
    net = rebuild(weights, tensors, description)
    classifier, untrained = description.classifier(net), description.classifier(description.untrained())

    # Predictions.
    scores = predict(classifier.to(device), test).cpu()
    criterion = losses.criterion(**params.train.loss.model_dump(), n_classes=len(data.classes), device=scores.device)
    answers = Answers(
        test.labels.cpu(),
        scores.argmax(1),
        description.probabilities(scores),
        criterion.loss.gives_probabilities,
        params.evaluate.calibration_bins,
    )
    untrained_predicted = predict(untrained.to(device), test).cpu().argmax(1)

    # Metrics.
    per_class = answers.per_class
    never_predicted = [name for name, count in zip(data.classes, per_class.predicted, strict=True) if count == 0]
    own = {
        "accuracy_untrained": metrics.accuracy(untrained_predicted, answers.labels),
        "loss": criterion(scores, answers.labels).item(),
        "never_predicted": len(never_predicted),
    } | ({"valid_accuracy": description.valid_accuracy} if described else {})
    if not math.isfinite(own["loss"]):
        raise InputError(f"{weights}: the loss on the test images is {own['loss']}, which is no result")
    if criterion.loss.gives_probabilities and description.temperature is not None:
        mended = calibration.bins(
            replace(description, is_calibrated=True).probabilities(scores), answers.labels, answers.bins
        )
        own |= {"temperature": description.temperature, "ece_at_temperature": mended.error}
    values = metrics.measured(answers, taken=own) | own
    values = {name: rounded(value) if isinstance(value, float) else value for name, value in values.items()}

    # Outputs.
    training = data.split("train", torch.device("cpu"))
    result = pictures.Result(
        data.classes,
        answers.labels,
        answers.predicted,
        answers.probabilities,
        answers.are_probabilities,
        answers.confusion,
        of_classes(data.classes, answers),
        answers.curve,
        answers.calibration,
        data.sources("test"),
        test.read,
        training.labels,
        training.read,
    )
    fonts.use_for([*data.classes, *(result.files[place] for place in [0, *result.wrong])])
    with claimed(results, plots) as (file, partial), placing(results, plots):
        write_json(file, values)
        (partial / "pictures").mkdir(parents=True)
        of_images = predictions(test.rows, result.files, answers, data.classes)
        write_csv(partial / "predictions.csv", of_images, float_format=SHARES)
        write_csv(partial / "classes.csv", result.per_class)
        write_csv(partial / "confusion.csv", confused(answers.confusion, data.classes))
        mistakes_page.write(partial / "mistakes.html", result)
        drawn = []
        for name, figure in all_pictures(result, history, description.epoch, net.cpu(), classifier.cpu()[:-1]):
            save(figure, partial / f"pictures/{name}.png")
            drawn.append(name)
        of_training = None if history is None else trained(params, weights, history, description.epoch)
        name = description.net["name"]
        summary.write(partial / "report.md", result, values, data.info, name, drawn, of_training)

    if history:
        tracker.evaluated(ResultFiles(weights, prepared, history, results, plots))
    say(f"test accuracy {values['accuracy']:.4f}, of random weights {values['accuracy_untrained']:.4f}")
    if never_predicted:
        warn(f"warning: never predicted: {listed(never_predicted)}")


def predictions(rows: Tensor, sources: list[str], answers: Answers, classes: list[str]) -> pd.DataFrame:
    """Return one row a test image: row among the images, file, label, predicted class, each class's probability."""
    first = {
        "index": rows.numpy(),
        "source": sources,
        "label": [classes[label] for label in answers.labels],
        "predicted": [classes[label] for label in answers.predicted],
    }
    return table(first, answers.probabilities, classes)


def of_classes(classes: list[str], answers: Answers) -> pd.DataFrame:
    """Return one row a class: precision, recall, F1, counts and the areas of its curves."""
    areas = pd.DataFrame(answers.areas, columns=["auroc", "average_precision"])
    return pd.DataFrame({"class": classes} | vars(answers.per_class)).join(areas)


def confused(table: Tensor, classes: list[str]) -> pd.DataFrame:
    """Return one row for each label and class that an image of it was predicted as: how many, and of the label's."""
    rows = [
        (classes[label], classes[predicted], int(table[label, predicted]), (table[label, predicted] / total).item())
        for label, total in enumerate(table.sum(1))
        for predicted in table[label].nonzero().flatten()
    ]
    return pd.DataFrame(rows, columns=["label", "predicted", "count", "share"])


def trained(params: Params, weights: Path, history: Path, chosen: int) -> dict[str, Any]:
    """Return what the report says of a training: its params, its weights, and which of how many epochs made these."""
    return {
        "params": params.model_dump(),
        "chosen": chosen,
        "epochs": len(pd.read_csv(history)),
        "sha256": sha256(weights),
    }


def all_pictures(
    result: pictures.Result, history: Path | None, chosen: int, net: nn.Module, before: nn.Module
) -> Iterator[tuple[str, Figure]]:
    """Yield each picture with its name: of the training, of the net, and of the result.

    The net's activations are those for the first test image, which first passes `before`.
    """
    taken = ["learning_curves"]
    if history:
        yield taken[0], charts.learning_curves(pd.read_csv(history), chosen)
    for name, convolution in convolutions(net).items():
        taken.append(f"filters_{name}")
        yield taken[-1], layers.filters(name, convolution.weight.detach())
    first = result.images(torch.tensor([0]))
    for name, maps, after, pooled in activations(net, before(first)):
        taken.append(f"activations_{name}")
        yield taken[-1], layers.activations(name, result.files[0], first[0], maps[0], after[0], pooled[0])
    yield from pictures.pictures(result, taken)


def check_outputs(history: Path | None, results: Path, plots: Path) -> None:
    """Raise InputError where a path that was forgotten would have results take the place of something else."""
    if history is None and results.suffix != ".json":
        raise InputError(f"RESULTS: {str(results)!r}, should be a file to write that ends in .json")
    if plots.is_file() or (plots.exists() and any(plots.iterdir()) and not (plots / "predictions.csv").exists()):
        raise InputError(f"PLOTS: {str(plots)!r} is there and holds no predictions.csv: it is not replaced")


def outside(params: TrainParams, data: Prepared, weights: Path, history: Path | None) -> Description:
    """Return what weights that do not say what they are must be. Raises InputError if there is a history of them."""
    if history:
        raise InputError(
            f"{weights} does not say which net its weights belong to, so {history} is not of their training.\n"
            "Leave that out to score them in the net that params.yaml's train.net names."
        )
    channels, side = transforms.shape_of(transforms.evaluation(params.transforms.eval), data)
    return describe(params, data, channels, side, losses.output(params.loss.name))


def check_fit(description: Description, data: Prepared, weights: Path) -> None:
    """Raise InputError, naming what differs, if the weights are of another kind of images or other classes."""
    channels, side = transforms.shape_of(description.transform(), data)
    pairs = {
        "classes": (description.classes, data.classes),
        "channels": (description.net["channels"], channels),
        "image size": (description.net["image_size"], side),
    }
    rows = [f"{name}: weights {ours}, prepared {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if rows:
        raise InputError("\n".join([f"the weights in {weights} do not fit the prepared images:", *lines(rows)]))


if __name__ == "__main__":
    cli.run(main)

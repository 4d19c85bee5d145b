"""Evaluation as a whole, on the digits: its figures against scikit-learn's, its files, and its pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn import metrics

from stages import checkpoints
from stages.command import InputError
from stages.evaluate import evaluate
from stages.tracking import Tracker
from stages.train import train
from tests.conftest import STARTS, Project, changed


def results(digits: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate, and return the metrics."""
    knobs = changed(changes)
    train(knobs.train, digits, STARTS, folder / "net.safetensors", folder / "train.csv", Tracker.off())
    return evaluated(digits, folder, changes)


def evaluated(digits: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    evaluate(
        changed(changes),
        weights=folder / "net.safetensors",
        prepared=digits,
        history=folder / "train.csv",
        results=folder / "evaluate.json",
        plots=folder / "plots",
        tracker=Tracker.off(),
    )
    values: dict[str, Any] = json.loads((folder / "evaluate.json").read_text())
    return values


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a short training."""
    folder = tmp_path_factory.mktemp("results")
    results(digits, folder, {"train.epochs": 3})
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_default_reaches_0_96_with_all_classes_for_any_seed(digits: Path, tmp_path: Path, seed: int) -> None:
    values = results(digits, tmp_path, {"train.seed": seed})
    assert values["accuracy"] >= 0.96
    assert values["never_predicted"] == 0
    assert values["accuracy_untrained"] < 0.3


def test_metrics_agree_with_scikit_learn_on_the_predictions(digits: Path, folder: Path) -> None:
    values = json.loads((folder / "evaluate.json").read_text())
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    predictions = pd.read_csv(folder / "plots/predictions.csv")
    label, predicted, probabilities = predictions["label"], predictions["predicted"], predictions[classes]

    manifest = pd.read_csv(digits / "manifest.csv").set_index("index")
    test = manifest[manifest["split"] == "test"]
    assert predictions["index"].tolist() == test.index.tolist()
    assert label.tolist() == [classes[i] for i in test["label"]]
    assert predicted.tolist() == [classes[i] for i in probabilities.to_numpy().argmax(1)]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)

    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted), rel=1e-5)
    assert values["macro_f1"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"), rel=1e-5)
    assert values["loss"] == pytest.approx(
        metrics.log_loss(test["label"], probabilities.div(probabilities.sum(axis=1), axis=0)), rel=1e-3
    )
    table = pd.read_csv(folder / "plots/classes.csv").set_index("class")
    report = metrics.classification_report(label, predicted, output_dict=True)
    for name in classes:
        assert table.loc[name, "precision"] == pytest.approx(report[name]["precision"], rel=1e-5)
        assert table.loc[name, "recall"] == pytest.approx(report[name]["recall"], rel=1e-5)
        assert table.loc[name, "f1"] == pytest.approx(report[name]["f1-score"], rel=1e-5)
        assert table.loc[name, "total"] == report[name]["support"]
        assert table.loc[name, "correct"] == ((label == name) & (predicted == name)).sum()


def test_classes_that_are_never_predicted_are_counted_and_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without the bias start, and with a high learning rate, the output's ReLU closes classes.
    changes = {"train.net.arguments.Net.bias_start": -1.0, "train.optimizer.lr": 0.3, "train.epochs": 5}
    values = results(digits, tmp_path, changes)
    predicted = set(pd.read_csv(tmp_path / "plots/predictions.csv")["predicted"])
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    missing = [name for name in classes if name not in predicted]
    assert missing
    assert values["never_predicted"] == len(missing)
    assert f"warning: never predicted: {', '.join(missing)}\n" in capsys.readouterr().err


def test_twice_gives_the_same_bytes_pictures_too(digits: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("net.safetensors", "train.csv"):
        shutil.copy(folder / name, tmp_path)
    evaluated(digits, tmp_path, {"train.epochs": 3})
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == [
        "evaluate.json",
        "net.safetensors",
        "plots/classes.csv",
        "plots/pictures/activations_conv1.png",
        "plots/pictures/classes.png",
        "plots/pictures/confusion.png",
        "plots/pictures/examples.png",
        "plots/pictures/filters_conv1.png",
        "plots/pictures/learning_curves.png",
        "plots/pictures/mistakes.png",
        "plots/predictions.csv",
        "train.csv",
    ]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_user_s_matplotlibrc_plays_no_part(folder: Path, project: Project, digits: Path) -> None:
    (project.root / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\n")
    inputs = [str(folder / "net.safetensors"), str(digits), str(folder / "train.csv")]
    project("python", "-m", "stages.evaluate", *inputs, "evaluate.json", "plots")
    for path in (folder / "plots/pictures").iterdir():
        assert (project.root / "plots/pictures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_weights_of_other_images_or_classes(digits: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "prepared")
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    facts["image_size"], facts["classes"][0] = 28, "nought"
    (tmp_path / "prepared/dataset.json").write_text(json.dumps(facts))
    for name in ("net.safetensors", "train.csv"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(
        InputError, match=r"(?s)do not fit the prepared images:\n  classes: .*nought.*\n  image size: .* 28"
    ):
        evaluated(tmp_path / "prepared", tmp_path, {})
    assert not (tmp_path / "evaluate.json").exists()
    assert not (tmp_path / "plots").exists()


def test_weights_that_do_not_fit_the_net(digits: Path, folder: Path, tmp_path: Path) -> None:
    net, description = checkpoints.load(folder / "net.safetensors")
    state = net.state_dict()
    state["fc1.weight"] = state["fc1.weight"][:, :-1]
    checkpoints.save(tmp_path / "net.safetensors", state, description)
    with pytest.raises(InputError, match=r"fc1\.weight: the Net has \(10, 128\), the file \(10, 127\)"):
        evaluated(digits, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]

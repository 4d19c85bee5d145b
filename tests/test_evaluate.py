"""Evaluation as a whole, on the digits: its figures against scikit-learn's, its files, and its pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from stages.base.errors import InputError
from stages.base.files import read_csv
from stages.base.params import WEIGHTS
from stages.evaluate import evaluate
from stages.nets.build import initial_net, net_spec
from stages.nets.weights import load_weights, save_weights
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import Project, params_with, write_image


def results(digits: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate, and return the metrics."""
    params = params_with(changes)
    train(params.train, digits, folder / "net.safetensors", folder / "train.csv", Tracker.off())
    return evaluated(digits, folder, changes)


def evaluated(digits: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    evaluate(
        params_with(changes),
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


def test_probabilities_at_the_temperature_that_fits_validation(digits: Path, folder: Path, tmp_path: Path) -> None:
    plain = json.loads((folder / "evaluate.json").read_text())
    values = results(digits, tmp_path, {"train.epochs": 3, "train.calibrate": True})
    temperature = load_weights(tmp_path / "net.safetensors")[1].temperature
    assert temperature is not None
    assert plain["temperature"] == values["temperature"] == temperature != 1
    assert values["ece"] == values["ece_at_temperature"] == plain["ece_at_temperature"] < plain["ece"]
    assert (values["accuracy"], values["loss"]) == (plain["accuracy"], plain["loss"])
    one, other = (pd.read_csv(path / "plots/predictions.csv").iloc[:, 4:].to_numpy() for path in (folder, tmp_path))
    expected = one ** (1 / temperature)
    np.testing.assert_allclose(other, expected / expected.sum(1, keepdims=True), atol=1e-3)


def test_scores_of_other_losses_have_no_temperature(digits: Path, tmp_path: Path) -> None:
    changes = {"train.epochs": 1, "train.loss.name": "MSELoss", "train.optimizer.lr": 0.003}
    assert not {"temperature", "ece_at_temperature", "ece", "brier"} & results(digits, tmp_path, changes).keys()
    assert load_weights(tmp_path / "net.safetensors")[1].temperature is None
    assert not (tmp_path / "plots/pictures/reliability.png").exists()
    with pytest.raises(InputError, match=r"train\.calibrate: true, but MSELoss makes no probabilities of scores"):
        results(digits, tmp_path, changes | {"train.calibrate": True})


def test_metrics_agree_with_scikit_learn_on_the_predictions(digits: Path, folder: Path) -> None:
    values = json.loads((folder / "evaluate.json").read_text())
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    predictions = pd.read_csv(folder / "plots/predictions.csv")
    label, predicted, probabilities = predictions["label"], predictions["predicted"], predictions[classes]

    manifest = pd.read_csv(digits / "manifest.csv").set_index("index")
    test = manifest[manifest["split"] == "test"]
    assert list(predictions) == ["index", "source", "label", "predicted", *classes]
    assert predictions["index"].tolist() == test.index.tolist()
    assert predictions["source"].tolist() == [f"digits/{i}" for i in test.index]
    assert label.tolist() == [classes[i] for i in test["label"]]
    assert predicted.tolist() == [classes[i] for i in probabilities.to_numpy().argmax(1)]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)

    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted), rel=1e-5)
    assert values["macro_f1"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"), rel=1e-5)
    areas = [metrics.roc_auc_score(label == name, probabilities[name]) for name in classes]
    assert values["auroc"] == pytest.approx(sum(areas) / len(areas), rel=1e-5)
    gained = [metrics.average_precision_score(label == name, probabilities[name]) for name in classes]
    assert values["average_precision"] == pytest.approx(sum(gained) / len(gained), rel=1e-5)
    assert values["kappa"] == pytest.approx(metrics.cohen_kappa_score(label, predicted), rel=1e-5)
    assert values["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(label, predicted), rel=1e-5)
    ranked = probabilities.to_numpy()
    assert values["top5"] == pytest.approx(metrics.top_k_accuracy_score(test["label"], ranked, k=5), rel=1e-5)
    assert values["brier"] == pytest.approx(((ranked - np.eye(10)[test["label"]]) ** 2).sum(1).mean(), rel=1e-4)
    assert values["loss"] == pytest.approx(
        metrics.log_loss(test["label"], probabilities.div(probabilities.sum(axis=1), axis=0)), rel=1e-3
    )
    confused = pd.read_csv(folder / "plots/confusion.csv")
    expected = pd.DataFrame({"label": label, "predicted": predicted}).value_counts()
    assert confused.set_index(["label", "predicted"])["count"].to_dict() == expected.to_dict()
    assert confused.groupby("label")["share"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    table = pd.read_csv(folder / "plots/classes.csv").set_index("class")
    assert table.loc[classes, "auroc"].tolist() == pytest.approx(areas, rel=1e-5)
    assert table.loc[classes, "average_precision"].tolist() == pytest.approx(gained, rel=1e-5)
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
        "plots/confusion.csv",
        "plots/mistakes.html",
        "plots/pictures/activations_conv1.png",
        "plots/pictures/classes.png",
        "plots/pictures/confusion.png",
        "plots/pictures/curves.png",
        "plots/pictures/examples.png",
        "plots/pictures/filters_conv1.png",
        "plots/pictures/learning_curves.png",
        "plots/pictures/mistakes.png",
        "plots/pictures/reliability.png",
        "plots/predictions.csv",
        "plots/report.md",
        "train.csv",
    ]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_own_images_are_named_and_letters_without_a_font_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPL_IGNORE_SYSTEM_FONTS", "1")
    names = {"猫犬": "写真", "=1+1": "@photo, of"}
    for label, (folder, stem) in enumerate(names.items()):
        for number in range(20):
            write_image(tmp_path / f"raw/{folder}/{stem} {number}.png", 100 * label + number)
    own = {"prepare.source": "folder", "prepare.path": str(tmp_path / "raw"), "train.epochs": 1}
    prepare(params_with(own).prepare, tmp_path / "prepared")
    capfd.readouterr()
    results(tmp_path / "prepared", tmp_path, own)
    said = [line for line in capfd.readouterr().err.splitlines() if "never predicted" not in line]
    assert len(said) == 1
    assert said[0].startswith("warning: no installed font has these letters of the names in the pictures: ")
    assert {"犬", "猫"} <= set(said[0])

    file = tmp_path / "plots/predictions.csv"
    assert ",\"'=1+1/" in file.read_text(), "a spreadsheet shows it and does not count"
    table = read_csv(file)
    manifest = read_csv(tmp_path / "prepared/manifest.csv").set_index("index")
    assert table["source"].tolist() == manifest.loc[table["index"], "source"].tolist()
    for row in table.itertuples():
        assert (tmp_path / "raw" / str(row.source)).is_file()
        assert str(row.source).startswith(f"{row.label}/{names[str(row.label)]} ")


def test_the_user_s_matplotlibrc_plays_no_part(folder: Path, project: Project, digits: Path) -> None:
    (project.root / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\n")
    inputs = [str(folder / "net.safetensors"), str(digits), str(folder / "train.csv")]
    # A store that cannot be used: exporting the model to it would take as long as all the rest.
    project("python", "-m", "stages.evaluate", *inputs, "evaluate.json", "plots", MLFLOW_TRACKING_URI="nonsense://x")
    for path in (folder / "plots/pictures").iterdir():
        assert (project.root / "plots/pictures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_weights_of_other_images_or_classes(digits: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "prepared")
    info = json.loads((tmp_path / "prepared/dataset.json").read_text())
    info["image_size"], info["classes"][0] = 28, "nought"
    (tmp_path / "prepared/dataset.json").write_text(json.dumps(info))
    np.save(tmp_path / "prepared/images.npy", np.zeros((1797, 28, 28), np.uint8))
    for name in ("net.safetensors", "train.csv"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(
        InputError, match=r"(?s)do not fit the prepared images:\n  classes: .*nought.*\n  image size: .* 28"
    ):
        evaluated(tmp_path / "prepared", tmp_path, {})
    assert not (tmp_path / "evaluate.json").exists()
    assert not (tmp_path / "plots").exists()


def test_weights_that_do_not_fit_the_net(digits: Path, folder: Path, tmp_path: Path) -> None:
    net, description = load_weights(folder / "net.safetensors")
    state = net.state_dict()
    state["fc1.weight"] = state["fc1.weight"][:, :-1]
    save_weights(tmp_path / "net.safetensors", state, description)
    with pytest.raises(InputError, match=r"fc1\.weight: the net has \(10, 128\), the file \(10, 127\)"):
        evaluated(digits, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


RESNET = {"train.net.name": "resnet18", "train.epochs": 2, "train.batch_size": 20}


def test_a_resnet_of_coloured_images_twice_gives_the_same_bytes(colours: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = results(colours, one, RESNET)
    assert results(colours, two, RESNET) == first
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.*"))
    assert "plots/pictures/filters_conv1.png" in names
    assert "plots/pictures/examples.png" in names
    assert not [name for name in names if "activations" in name]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    history = pd.read_csv(one / "train.csv")
    assert history["train/loss"].iloc[1] < history["train/loss"].iloc[0]
    net, description = load_weights(one / "net.safetensors")
    assert type(net).__name__ == "ResNet"
    assert description.net == {
        "name": "resnet18",
        "arguments": {},
        "n_classes": 3,
        "channels": 3,
        "image_size": 32,
    }


def test_the_net_of_coloured_images(colours: Path, tmp_path: Path) -> None:
    values = results(colours, tmp_path, {"train.epochs": 10, "train.batch_size": 10})
    assert values["accuracy"] == 1.0
    assert {path.name for path in (tmp_path / "plots/pictures").iterdir()} >= {
        "filters_conv1.png",
        "activations_conv1.png",
    }


def test_a_batch_of_one_that_batch_norm_cannot_take_is_said_before_training(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an epoch has a batch of 1 image: resnet18's BatchNorm"):
        results(colours, tmp_path, RESNET | {"train.batch_size": 39})
    assert list(tmp_path.iterdir()) == []


def test_training_from_earlier_weights_with_a_new_head(
    colours: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / WEIGHTS
    params = params_with({"train.epochs": 1, "train.batch_size": 10})
    train(params.train, colours, earlier / "colours", tmp_path / "train.csv", Tracker.off())
    further = params.train.model_copy(update={"init_from": "colours"})
    train(further, colours, tmp_path / "further", tmp_path / "further.csv", Tracker.off())
    one, two = (pd.read_csv(tmp_path / name)["train/loss"].item() for name in ("train.csv", "further.csv"))
    assert two < one

    # One class less: all but the last layer is taken.
    fewer = shutil.copytree(colours, tmp_path / "fewer")
    info = json.loads((fewer / "dataset.json").read_text())
    gone = len(info["classes"]) - 1
    (fewer / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][:gone]}))
    manifest = pd.read_csv(fewer / "manifest.csv")
    manifest[manifest["label"] < gone].to_csv(fewer / "manifest.csv", index=False)
    with pytest.raises(
        InputError, match=r"(?s)fc1\.bias: the net has .*With train\.new_head: true, the last layer need"
    ):
        train(further, fewer, tmp_path / "other", tmp_path / "other.csv", Tracker.off())
    slow = params_with({"train.epochs": 1, "train.batch_size": 10, "train.optimizer.lr": 1e-9}).train
    new_head = slow.model_copy(update={"init_from": "colours", "new_head": True})
    train(new_head, fewer, tmp_path / "headed", tmp_path / "headed.csv", Tracker.off())
    old, new = (load_weights(path)[0].state_dict() for path in (earlier / "colours", tmp_path / "headed"))
    assert torch.allclose(new["conv1.weight"], old["conv1.weight"], atol=1e-6)
    assert new["fc1.weight"].shape[0] == gone
    assert not torch.allclose(new["fc1.weight"], old["fc1.weight"][:gone], atol=1e-3)

    train(params.train, digits, earlier / "gray", tmp_path / "train.csv", Tracker.off())
    gray = params.train.model_copy(update={"init_from": "gray", "new_head": True})
    with pytest.raises(InputError, match=r"(?s)conv1\.weight: the net has \(32, 3, 5, 5\), the file \(32, 1, 5, 5\)"):
        train(gray, colours, tmp_path / "other", tmp_path / "other.csv", Tracker.off())
    assert not (tmp_path / "other").exists()


def test_our_weights_without_a_history_describe_themselves(digits: Path, folder: Path, tmp_path: Path) -> None:
    params = params_with({"train.net.name": "no such net"})  # which is not looked at
    evaluate(params, folder / "net.safetensors", digits, None, tmp_path / "a.json", tmp_path / "plots", Tracker.off())
    assert (tmp_path / "a.json").read_bytes() == (folder / "evaluate.json").read_bytes()


def test_weights_that_give_no_number(digits: Path, tmp_path: Path) -> None:
    weights = initial_net(net_spec("Net", {}, 10, 1, 8), 0).state_dict()
    torch.save(weights | {"fc1.bias": torch.full((10,), torch.nan)}, tmp_path / "nan")
    with pytest.raises(InputError, match="nan: the loss on the test images is nan"):
        evaluate(
            params_with({}), tmp_path / "nan", digits, None, tmp_path / "a.json", tmp_path / "plots", Tracker.off()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]

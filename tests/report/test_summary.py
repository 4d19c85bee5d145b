"""The report as Markdown, read back: its figures beside scikit-learn's and scipy's, its names as they are."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt
from scipy.stats import binomtest

from stages.report import summary
from stages.report.pictures import Result
from stages.training.metrics import Answers, measured
from tests.conftest import params_with

CLASSES = ["cat", "a|b *c* <script>alert(1)</script> `d` ![x](http://x/y.png)", "two\nlines", "rare"]
LABELS = torch.tensor([0] * 40 + [1] * 40 + [2] * 40 + [3] * 4)
PREDICTED = torch.tensor([0] * 38 + [1] * 2 + [1] * 30 + [0] * 10 + [2] * 40 + [0] * 4)


def result(is_probable: bool = True) -> Result:
    probabilities = torch.full((len(LABELS), 4), 0.1).scatter(1, PREDICTED[:, None], 0.7)
    answers = Answers(LABELS, PREDICTED, probabilities, is_probable, 10)
    per_class = pd.DataFrame({"class": CLASSES} | vars(answers.per_class))
    per_class["auroc"] = [0.9, 0.8, 1.0, math.nan]
    return Result(
        classes=CLASSES,
        labels=LABELS,
        predicted=PREDICTED,
        probabilities=probabilities,
        is_probable=is_probable,
        confusion=answers.confusion,
        per_class=per_class,
        curve=answers.curve,
        calibration=answers.calibration,
        files=[f"{place}.png" for place in range(len(LABELS))],
        images=torch.zeros(len(LABELS), 8, 8).__getitem__,
        training_labels=LABELS,
        training_images=torch.zeros(len(LABELS), 8, 8).__getitem__,
    )


def written(folder: Path, training: dict[str, Any] | None, of: Result, pictures: list[str]) -> str:
    answers = Answers(of.labels, of.predicted, of.probabilities, of.is_probable, 10)
    values = measured(answers) | {"accuracy_untrained": 0.25, "never_predicted": 1, "mine": 0.5}
    data = {
        "source": "folder",
        "image_size": 32,
        "channels": 3,
        "sizes": {"test": 124, "train": 400, "valid": 40},
        "counts": {"test": [40, 40, 40, 4], "train": [100, 100, 100, 100], "valid": [10] * 4},
        "sha256": {"test": "a" * 64, "train": "b" * 64, "valid": "c" * 64},
        "excluded": 5,
        "rejected": {"duplicate": 1200},
    }
    summary.write(folder / "report.md", of, values, data, "Net", pictures, training)
    return (folder / "report.md").read_text()


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a report, as Markdown shows their cells."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark", {"html": False}).enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level == 4 and found and found[-1]:
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


def test_what_it_says_is_what_was_measured(tmp_path: Path) -> None:
    params = params_with({"prepare.path": "data/raw/flowers", "train.workers": 3}).model_dump()
    training = {"params": params, "chosen": 4, "epochs": 6, "sha256": "d" * 64}
    text = written(tmp_path, training, result(), ["confusion", "curves"])
    right = int((LABELS == PREDICTED).sum())
    low, high = binomtest(right, 124).proportion_ci(method="wilson")
    assert text.startswith(f"# Net: test accuracy {right / 124:.4f}\n")
    assert f"{right} of 124 test images are called right (95 % interval {low:.4f} to {high:.4f}). Its weights" in text
    assert "epoch 4 of 6" in text
    assert "Left out: excluded by a list 5, duplicate 1,200." in text

    data, metrics, confused, classes, digests = tables(text)
    names = [name.replace("\n", "\\n") for name in CLASSES]
    assert data[0] == ["class", "train", "valid", "test"]
    assert data[1:] == [
        *([name, "100", "10", count] for name, count in zip(names, ["40", "40", "40", "4"], strict=True)),
        ["all 4", "400", "40", "124"],
    ]
    of_metric = {row[0]: row[1:] for row in metrics[1:]}
    assert of_metric["accuracy"][:2] == [f"{right / 124:.6g}", f"{low:.4f} to {high:.4f}"]
    assert of_metric["mine"] == ["0.5", "", ""], "a metric of one's own"
    assert [row[0] for row in metrics[1:3]] == ["accuracy", "accuracy_untrained"]
    assert confused[1] == [names[1], names[0], "10", "25.0%"]
    assert [row[2] for row in confused[1:]] == ["10", "4", "2"]
    worst = classes[1]
    assert worst[:3] == ["rare", "0 of 4", "0.000"]
    assert classes[2][3] == "{:.4f} to {:.4f}".format(*binomtest(30, 40).proportion_ci(method="wilson"))
    assert digests[1:] == [["weights", "d" * 64], ["train", "b" * 64], ["valid", "c" * 64], ["test", "a" * 64]]

    limits = text[text.index("## Limits") : text.index("## How to make it again")]
    assert "Fewer than 30 test images, so that their figures say little: rare." in limits
    assert "Never predicted: rare." in limits
    listing = dict(re.findall(r"^(prepare\.\S+|train\.\S+|evaluate\.\S+): (.*)$", text, re.MULTILINE))
    assert json.loads(listing["prepare.path"]) == "data/raw/flowers"
    assert json.loads(listing["train.net.arguments.Net.widths"]) == [32]
    assert {"train.workers", "train.log_steps", "train.log_system", "train.checkpoint_minutes"} & {*listing} == set()
    assert set(re.findall(r"pictures/(\w+)\.png", text)) == {
        *("examples", "learning_curves", "confusion", "mistakes", "curves")
    }


def test_equal_params_are_equal_bytes_and_no_place_outside_is_named(tmp_path: Path) -> None:
    texts = []
    for path, arguments in (
        ("/home/alice/flowers", {"momentum": 1, "nesterov": True}),
        ("/data/flowers", {"nesterov": True, "momentum": 1.0}),
    ):
        changes = {"prepare.path": path, "train.optimizer.arguments": {"SGD": arguments}}
        training = {"params": params_with(changes).model_dump(), "chosen": 1, "epochs": 1, "sha256": "d" * 64}
        texts.append(written(tmp_path, training, result(), []))
    assert texts[0] == texts[1]
    assert "train.optimizer.arguments.SGD.momentum: 1\n" in texts[0]
    assert 'prepare.path: "outside of the repository"' in texts[0]


def test_names_are_no_markup(tmp_path: Path) -> None:
    page = (
        MarkdownIt("commonmark", {"html": False})
        .enable("table")
        .render(written(tmp_path, None, result(), ["confusion"]))
    )
    assert "<script" not in page
    assert "<em>" not in page
    assert "http://x/y.png" not in re.findall(r'(?:src|href)="([^"]*)"', page)


def test_of_weights_from_elsewhere_nothing_of_a_training_is_said(tmp_path: Path) -> None:
    text = written(tmp_path, None, result(is_probable=False), ["confusion"])
    assert "## Training" not in text
    assert "## How to make it again" not in text
    assert "learning_curves" not in text
    assert "they order classes, and are no measure of doubt" in text


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (9833, 10000), (1, 3)])
def test_intervals_are_wilson_s(hits: int, n: int) -> None:
    assert summary.interval(hits, n) == pytest.approx(
        tuple(binomtest(hits, n).proportion_ci(method="wilson")), abs=1e-6
    )

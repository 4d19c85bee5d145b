"""Weights from elsewhere, scored from the command line without a history."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.batches.prepared import Prepared
from tests.conftest import Project


@pytest.fixture(scope="module")
def course(digits: Path, make_project: Callable[[], Project]) -> Project:
    """A copy of the project with digits of 28 pixels and weights of the course's second solution."""
    project = make_project()
    prepared = shutil.copytree(digits, project.root / "large")
    images = np.load(prepared / "images.npy").repeat(4, axis=1).repeat(4, axis=2)
    np.save(prepared / "images.npy", images[:, 2:30, 2:30])
    info = json.loads((prepared / "dataset.json").read_text()) | {"image_size": 28}
    (prepared / "dataset.json").write_text(json.dumps(info))
    torch.manual_seed(3)
    convolutions = {"conv1": nn.Conv2d(1, 10, 3), "conv2": nn.Conv2d(10, 20, 3)}
    linears = {"fc1": nn.Linear(500, 50), "fc2": nn.Linear(50, 10)}
    torch.save(nn.ModuleDict({**convolutions, **linears}).state_dict(), project.root / "data/weights/course.pt")
    return project


OUTSIDE = ("python", "-m", "stages.evaluate", "data/weights/course.pt", "large")


@pytest.mark.parametrize("normalise", ["data", "none"])
def test_weights_from_elsewhere_are_scored_from_the_command_line(course: Project, normalise: str) -> None:
    course("git", "checkout", "-q", "params.yaml")
    course.edit("params.yaml", "    name: Net ", "    name: course_2 ")
    course.edit("params.yaml", "  normalise: data ", f"  normalise: {normalise} ")
    printed = course(*OUTSIDE, "scores/evaluate.json", "scores/plots")
    values = json.loads((course.root / "scores/evaluate.json").read_text())
    assert f"test accuracy {values['accuracy']:.4f}, " in printed
    assert "valid_accuracy" not in values
    pictures = {path.name for path in (course.root / "scores/plots/pictures").iterdir()}
    assert "learning_curves.png" not in pictures
    assert {"filters_conv2.png", "activations_conv2.png", "mistakes.png"} <= pictures
    assert not (course.root / "mlflow.db").exists(), "nothing is logged"

    # The same by hand.
    w = torch.load(course.root / "data/weights/course.pt", weights_only=True)
    data = Prepared(course.root / "large")
    test = data.split("test", torch.device("cpu"))
    x = test.read(slice(None))[:, None].float() / 255
    x = (x - data.mean[0]) / data.std[0] if normalise == "data" else x
    for name in ("conv1", "conv2"):
        x = F.max_pool2d(F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"])), 2)
    x = F.relu(F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]))
    scores = F.linear(x, w["fc2.weight"], w["fc2.bias"])
    assert values["accuracy"] == pytest.approx((scores.argmax(1) == test.labels).float().mean().item(), rel=1e-5)
    assert values["loss"] == pytest.approx(F.cross_entropy(scores, test.labels).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("metrics/train.csv", "a.json", "plots"), "does not say which net .*, so metrics/train.csv is not of their"),
        (
            ("metrics/train.csv", "a.json"),
            r"RESULTS: 'metrics/train\.csv', should be a file to write that ends in \.json",
        ),
        (("a.json", "data"), "PLOTS: 'data' is there and holds no predictions.csv: it is not replaced"),
    ],
)
def test_wrong_paths_for_weights_from_elsewhere(course: Project, paths: tuple[str, ...], message: str) -> None:
    before = course("git", "status", "--porcelain")
    printed = course(*OUTSIDE, *paths, fails=True)
    assert re.search(f"^error: .*{message}", printed, re.MULTILINE)
    assert "Traceback" not in printed
    assert course("git", "status", "--porcelain") == before

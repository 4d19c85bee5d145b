"""Every command of the README and of docs/, run as it stands there, in its order, in a copy of the project."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, Project

README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = [
    command
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if (command := line.split("  #")[0].strip())
]
IN_CI = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]


@pytest.fixture(scope="module")
def copy(make_project: Callable[[], Project]) -> Project:
    project = make_project()
    (project.root / ".venv").symlink_to(sys.prefix)  # this environment, for make and for activation
    random = np.random.default_rng(0)
    for i in range(200):  # oblong ones, in colour, one class of which is brighter
        pixels = random.integers(0, 200, (64, 80, 3)) + 55 * (i % 2)
        file = project.root / "data/raw/flowers" / ("roses", "tulips")[i % 2] / f"{i:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return project


def test_there_is_something_to_run() -> None:
    assert {"make repro", "make test", "make ui"} <= set(COMMANDS)
    assert {"make repro", "make test", "make soak", "make check"} == set(IN_CI), (
        "CI runs these, where nothing is installed yet"
    )
    assert len(README.splitlines()) <= 150


# CI has run some; tests/test_ui.py and tests/test_serve.py run the two that do not end.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if re.search("fashion_mnist|tools.sweep", command) else [])
        for command in COMMANDS
        if command not in [*IN_CI, "make ui", "make serve"]
    ],
)
def test_command(copy: Project, command: str) -> None:
    # `make` would not find the environment up to date, since the copy's files are newer than it.
    copy("bash", "-ec", command.replace("make ", "make -o .venv/installed "))
    if command.startswith("dvc exp run"):
        run = copy.runs()[0]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == run.data.tags["dvc.exp_name"]
        assert run.data.tags["dvc.baseline_rev"] == copy("git", "rev-parse", "HEAD").strip()
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(copy.root / "mlartifacts")
        assert (".dvc/tmp/exps" in run.data.tags["directory"]) == ("--temp" in command)
        assert run.data.metrics["test/accuracy"] >= (0.90 if "fashion_mnist" in command else 0.96)
        assert run.data.metrics["test/never_predicted"] == 0
        for key, value in re.findall(r"-S \+?([\w.]+)=(\S+)", command):
            assert run.data.params[key] == value

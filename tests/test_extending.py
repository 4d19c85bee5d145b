"""docs/extending.md: its code, put where it says into a copy of the project, is what runs there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from stages.nets.weights import read_weights
from tests.conftest import ROOT, Project, free_port, served
from tests.report.conftest import drawn, near
from tests.tools.test_serve import Server

pytestmark = pytest.mark.slow


class Addition(NamedTuple):
    """A section of the page: what to add to which file, and the overrides of its command."""

    table: str
    file: str
    code: str
    line: str
    overrides: list[str]

    @classmethod
    def of(cls, section: str) -> "Addition":
        place = re.search(r"above `(\w+)` in\s+`([\w/.]+)`", section)
        assert place, section
        code, line = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        [command] = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        assert command.startswith("dvc exp run --temp"), command
        return cls(place[1], place[2], code, line, re.findall(r"-S (\S+)", command))

    def apply(self, project: Project) -> None:
        path = project.root / self.file
        text = path.read_text()
        [start] = re.finditer(rf"^(#.*\n)*{self.table}\b.*= {{", text, re.MULTILINE)
        before, after = text[: start.start()].rstrip(), text[start.end() :]
        path.write_text(f"{before}\n\n\n{self.code}\n\n{start[0]}\n{self.line}{after}")


ADDITIONS = [Addition.of(section) for section in (ROOT / "docs/extending.md").read_text().split("\n## ")[1:]]


@pytest.fixture(scope="module")
def extended(make_project: Callable[[], Project]) -> Project:
    """A copy with all that the page adds, in which one `dvc repro` has run with all of it."""
    project = make_project()
    for addition in ADDITIONS:
        addition.apply(project)
    project("ruff", "format", "stages")
    overrides = [word for addition in ADDITIONS for override in addition.overrides for word in ("-S", override)]
    project("dvc", "exp", "run", "--name", "mine", *overrides)
    return project


def test_each_takes_ten_lines() -> None:
    assert [addition.table for addition in ADDITIONS] == ["NETS", "LOSSES", "METRICS", "PICTURES", "PUBLISHED"]
    for addition in ADDITIONS:
        assert len((addition.code + addition.line).splitlines()) <= 10, addition


def test_the_code_is_in_order(extended: Project) -> None:
    extended("ruff", "check", "stages")


def test_the_net(extended: Project) -> None:
    weights, description = read_weights(extended.root / "models/net.safetensors")
    assert description
    assert (description.net["name"], description.net["arguments"]) == ("MyNet", {"width": 32})
    assert {name: tuple(tensor.shape) for name, tensor in weights.items() if "weight" in name} == {
        "fc1.weight": (32, 64),
        "fc2.weight": (2, 32),
    }
    port = free_port()
    with served(extended, "python", "-m", "tools.serve", "mine", "--port", str(port), port=port):
        lying, upright = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
        lying[::2] = upright[:, ::2] = 255
        assert Server(port).scores(np.stack([lying, upright])).argmax(1).tolist() == [0, 1]


def test_the_loss(extended: Project) -> None:
    predictions = pd.read_csv(extended.root / "plots/predictions.csv")
    p = np.array([row[row["label"]] for _, row in predictions.iterrows()], dtype=float)
    expected = float(np.mean(-(1 - p) * np.log(p)))
    assert results(extended)["loss"] == pytest.approx(expected, rel=0.01, abs=1e-5)
    assert expected > 0


def test_the_metric(extended: Project) -> None:
    lowest = pd.read_csv(extended.root / "plots/classes.csv")["recall"].min()
    assert results(extended)["lowest_recall"] == pytest.approx(lowest)
    assert extended.runs()[0].data.metrics["test/lowest_recall"] == results(extended)["lowest_recall"]


def test_the_picture(extended: Project) -> None:
    bars = near(drawn(extended.root / "plots/pictures/confidence.png"), (0x66, 0x66, 0x66))
    assert bars[0].size > 1000
    assert (
        extended.root / f"mlartifacts/{extended.runs()[0].info.run_id}/artifacts/plots/pictures/confidence.png"
    ).exists()


def test_the_source(extended: Project) -> None:
    facts = json.loads((extended.root / "data/prepared/dataset.json").read_text())
    assert (facts["source"], facts["classes"], sum(facts["sizes"].values())) == ("stripes", ["lying", "upright"], 200)


def results(project: Project) -> dict[str, float]:
    content: dict[str, float] = json.loads(Path(project.root / "metrics/evaluate.json").read_text())
    return content

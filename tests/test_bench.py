"""The comparison with peers runs; those of them that the extra `bench` brings are for who asks for the figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.figures import END, START, goals, named, plot, tables, write
from tests.conftest import ROOT, clean_environment


@pytest.mark.torture
def test_training_beside_peers(tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    out.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    options = ["--rounds", "1", "--epochs", "1", "--batch", "512", "--precision", "float32", "--out", str(out)]
    command = [sys.executable, "-m", "bench.training", *options, "--only", "repronet", "plain PyTorch", "notebook"]
    printed = subprocess.check_output(command, cwd=ROOT, env=clean_environment(), text=True)
    assert re.findall(r"^\| (\w.+?) \| [\d,]+ \|", printed, re.MULTILINE) == command[-3:]
    text = out.read_text()
    assert text == f"before\n{START}\n{printed[printed.index('**Net, float32') :]}{END}\nafter\n"
    with Image.open(tmp_path / "performance.png") as picture:
        assert picture.width > 300
    [setting] = json.loads((tmp_path / "performance.json").read_text())
    assert named(setting) == "Net, float32, batches of 512"
    assert setting["gflops"][0] > 1
    assert "torch" in setting["versions"]
    for row in setting["rows"]:
        assert row["accuracy"][0] > 0.7
        assert row["images_per_second"][0] > 100
        assert 0 < row["first_step"][0] < 60
        assert row["memory"][0] > 200, "torch alone takes that"
    write(out, [setting | {"batch": 20}])
    assert [each["batch"] for each in json.loads((tmp_path / "performance.json").read_text())] == [20, 512]
    write(out, [setting | {"cores": 99}])
    assert [each["cores"] for each in json.loads((tmp_path / "performance.json").read_text())] == [setting["cores"], 99]


@pytest.mark.torture
def test_tools_among_many_runs() -> None:
    command = [sys.executable, "-m", "bench.many", "--experiments", "2", "--runs", "7"]
    printed = subprocess.check_output(command, cwd=ROOT, env=clean_environment(), text=True)
    rows = re.findall(r"^\| (tools\..+?) \| ([\d.]+) \| ([\d.]+) \|$", printed, re.MULTILINE)
    once = ", which reads each commit once"
    names = [f"show{once}", "show", f"sync{once}", "sync", "compare best X", "ui"]
    assert [row[0] for row in rows] == [f"tools.{name}" for name in names]
    assert all(float(seconds) > 0.1 for row in rows for seconds in row[1:])


@pytest.mark.slow
def test_fewer_images_for_nets_that_take_long() -> None:
    options = ["--rounds", "1", "--epochs", "1", "--images", "1200", "--precision", "float32", "--batch", "20"]
    command = [sys.executable, "-m", "bench.training", *options, "--only", "repronet", "notebook"]
    printed = subprocess.check_output(
        [*command, "--net", "three convolutions"], cwd=ROOT, env=clean_environment(), text=True
    )
    assert "one round of one epoch of 1,200 images" in printed
    assert len(re.findall(r"^\| (?:repronet|notebook) \| [\d,]+ \|", printed, re.MULTILINE)) == 2


def test_as_many_images_are_in_the_splits_as_are_asked_for(tmp_path: Path) -> None:
    command = (
        f"from bench.training import make_data; from pathlib import Path; make_data(Path({str(tmp_path)!r}), 1200)"
    )
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=clean_environment(), check=True)
    manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
    assert manifest["split"].value_counts().to_dict() == {"train": 1080, "valid": 120, "test": 10_000}
    for split, rows in manifest.groupby("split"):
        assert len(np.load(tmp_path / f"{split}_images.npy")) == len(rows)
        assert np.load(tmp_path / f"{split}_labels.npy").tolist() == rows["label"].tolist()


@pytest.mark.parametrize("number", ["90", "70000", "1023"])
def test_too_few_and_too_many_images_are_refused(number: str) -> None:
    command = [sys.executable, "-m", "bench.training", "--images", number]
    refused = subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True)
    assert refused.returncode == 1
    assert f"error: --images: {number}, should be from 1024 to 60000" in refused.stderr


def test_an_unknown_peer_is_named() -> None:
    command = [sys.executable, "-m", "bench.training", "--only", "jax"]
    refused = subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True)
    assert refused.returncode == 1
    assert "error: --only: jax, should be of repronet, repronet (portable), plain PyTorch" in refused.stderr


def test_the_picture_has_a_panel_for_each_setting() -> None:
    settings = json.loads((ROOT / "docs/performance.json").read_text())
    for n in (1, 2, 4, len(settings)):
        assert [axes.get_title() for axes in plot(settings[:n]).axes] == [*map(named, settings[:n])]


def test_the_picture_says_what_was_not_measured() -> None:
    about = {"precision": "float32", "batch": 128}
    rows = [{"peer": peer, "images_per_second": [1.0]} for peer in ("repronet", "Keras on torch")]
    both, one = plot([{"net": "Net", "rows": rows} | about, {"net": "resnet18", "rows": rows[:1]} | about]).axes
    assert not both.texts
    assert [(text.get_text().strip(), text.get_position()[1]) for text in one.texts] == [("not measured", 0)]


def test_the_documented_tables_are_those_of_the_figures() -> None:
    settings = json.loads((ROOT / "docs/performance.json").read_text())
    assert f"{START}\n{tables(settings)}\n{END}" in (ROOT / "docs/performance.md").read_text()


@pytest.mark.parametrize(
    ("batch", "reached"),
    [
        (128, {"repronet over fast": (2.0, 1.5), "repronet over notebook (2 workers)": (5.0, 3.0)}),
        (20, {"repronet over notebook (2 workers)": (2.0, 3.0)}),
        (512, {}),
    ],
)
def test_goals_are_over_the_fastest(batch: int, reached: dict[str, tuple[float, float]]) -> None:
    speeds = {"repronet": 30.0, "fast": 20.0, "notebook": 5.0, "notebook (2 workers)": 10.0, "slow": 1.0}
    rows = [{"peer": peer, "images_per_second": [speed]} for peer, speed in speeds.items()]
    found = goals({"net": "Net", "batch": batch, "precision": "float32", "rows": rows})
    assert {name: (goal, times) for name, goal, times, _ in found} == reached

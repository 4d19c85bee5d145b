"""The comparison with peers runs; those of them that the extra `bench` brings are for who asks for the figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.training import END, START, table
from tests.conftest import ROOT, clean_environment


@pytest.mark.slow
def test_training_beside_peers(tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    out.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    options = ["--rounds", "1", "--epochs", "1", "--batch", "512", "--precision", "float32", "--out", str(out)]
    command = [sys.executable, "-m", "bench.training", *options, "--only", "repronet", "plain PyTorch", "notebook"]
    printed = subprocess.check_output(command, cwd=ROOT, env=clean_environment(), text=True)
    assert re.findall(r"^\| float32 \| 512 \| (.+?) \|", printed, re.MULTILINE) == command[-3:]
    text = out.read_text()
    assert printed[printed.index("| precision") :].strip() in text
    assert (text[:7], text[-6:], "old" in text) == ("before\n", "after\n", False)
    with Image.open(tmp_path / "performance.png") as picture:
        assert picture.width > 300
    for row in json.loads((tmp_path / "performance.json").read_text())["rows"]:
        assert row["accuracy"][0] > 0.7
        assert row["images_per_second"][0] > 100
        assert 0 < row["first_step"][0] < 60
        assert row["memory"][0] > 200, "torch alone takes that"


def test_an_unknown_peer_is_named() -> None:
    command = [sys.executable, "-m", "bench.training", "--only", "jax"]
    refused = subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True)
    assert refused.returncode == 1
    assert "error: --only: jax, should be of repronet, repronet (portable), plain PyTorch" in refused.stderr


def test_the_documented_table_is_that_of_the_figures() -> None:
    rows = json.loads((ROOT / "docs/performance.json").read_text())["rows"]
    assert table(rows) in (ROOT / "docs/performance.md").read_text()

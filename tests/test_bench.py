"""The comparison with peers runs; those of them that the extra `bench` brings are for who asks for the figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment


@pytest.mark.slow
def test_training_beside_peers(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--epochs", "1", "--batch", "512", "--precision", "float32", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench.training", *options, "--only", "repronet", "plain PyTorch", "notebook"]
    table = subprocess.check_output(command, cwd=ROOT, env=clean_environment(), text=True)
    assert re.findall(r"^\| float32 \| 512 \| (.+?) \|", table, re.MULTILINE) == command[-3:]
    for row in json.loads((tmp_path / "training.json").read_text())["rows"]:
        assert row["accuracy"][0] > 0.7
        assert row["images_per_second"][0] > 100
        assert 0 < row["first_step"][0] < 60
        assert row["memory"][0] > 200, "torch alone takes that"


def test_an_unknown_peer_is_named() -> None:
    command = [sys.executable, "-m", "bench.training", "--only", "jax"]
    refused = subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True)
    assert refused.returncode == 1
    assert "error: --only: jax, should be of repronet, repronet (portable), plain PyTorch" in refused.stderr

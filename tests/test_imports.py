"""What a stage leaves unimported: each of these takes every experiment's time, up to a second."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

PREPARED, WEIGHTS, HISTORY = "data/prepared", "models/net.safetensors", "metrics/train.csv"
STAGES = {
    "prepare": ([PREPARED], {"mlflow", "sklearn", "torch"}),
    "train": ([PREPARED, WEIGHTS, HISTORY], {"matplotlib", "mlflow", "sklearn", "torch._dynamo", "torchvision"}),
    "evaluate": (
        [WEIGHTS, PREPARED, HISTORY, "metrics/evaluate.json", "plots"],
        {"mlflow", "sklearn", "torch._dynamo", "torchvision"},
    ),
}


def test_what_no_stage_of_digits_imports(tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.rmtree(project.root / "plots", ignore_errors=True)
    for stage, (arguments, unused) in STAGES.items():
        said = project(sys.executable, "-X", "importtime", "-m", f"stages.{stage}", *arguments)
        assert "stages.base.params" in imported(said)
        assert not imported(said) & unused, stage


def imported(said: str) -> set[str]:
    """The modules that `python -X importtime` names."""
    return set(re.findall(r"^import time: .*\| +(\S+)$", said, flags=re.MULTILINE))


def test_what_is_in_place_is_seen_without_torch(project: Project) -> None:
    project("dvc", "repro")
    said = project(sys.executable, "-X", "importtime", "-m", "tools.sync", "workspace")
    assert imported(said) >= {"mlflow", "tools.recorded"}
    assert "torch" not in imported(said)
    assert not imported(project(sys.executable, "-X", "importtime", "-c", "import tools.ui")) & {"torch", "pandas"}


@pytest.mark.parametrize("name", ["Adam", "LBFGS", "Muon"])
def test_no_optimizer_imports_torch_s_compiler(name: str, tmp_path: Path) -> None:
    code = f"""
import sys
from torch import nn
from stages.training import optimizers, schedules
net = nn.Linear(3, 2)
optimizer = optimizers.optimizer({name!r}, None, {{}}, net.parameters())
schedule = schedules.schedule("OneCycleLR", {{}}, optimizer, epochs=2, steps=2)
def closure():
    optimizer.zero_grad()
    loss = net.weight.square().sum() + net.bias.square().sum()
    loss.backward()
    return loss
before = closure().item()
optimizer.step(closure)
schedule.after_batch()
assert closure().item() < before
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    Project(tmp_path)(sys.executable, "-c", code)

"""Equal bits on every CPU: the commit's results here, under other CPUs' instructions, and on fewer cores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.base.instructions import LIMITS, OUTER, has_avx2
from tests.conftest import ROOT, YAML_READER, Project, clean_environment

COMMANDS = {name: entry["cmd"] for name, entry in YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"].items()}
OUTPUTS = ["data/prepared", "models/net.safetensors", "metrics/train.csv", "metrics/evaluate.json", "plots"]


def digests(project: Project) -> dict[str, str]:
    """Take what the workspace has into dvc.lock, and return the digest of each output there."""
    project("dvc", "commit", "-q", "-f")
    return committed(project.root)


def committed(root: Path) -> dict[str, str]:
    stages = YAML_READER.load((root / "dvc.lock").read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def run_stages(project: Project, *prefix: str) -> dict[str, str]:
    """Run the three stages with the environment's own Python behind the prefix; return the digests of the outputs."""
    shutil.rmtree(project.root / "metrics")  # what is committed is not taken for what comes out
    for command in COMMANDS.values():
        program = command.replace("python", sys.executable, 1).split()
        project(*prefix, *program, MLFLOW_TRACKING_URI="nonsense://x")
    return digests(project)


def test_results_are_the_commit_s(project: Project) -> None:
    assert has_avx2(), "the committed results are those of x86-64 CPUs with AVX2"
    expected = committed(ROOT)
    assert sorted(expected) == sorted(OUTPUTS)
    assert run_stages(project) == expected


def test_on_one_core(project: Project) -> None:
    core = str(min(os.sched_getaffinity(0)))
    assert run_stages(project, "taskset", "-c", core) == committed(ROOT)


@pytest.mark.torture
@pytest.mark.parametrize("cpu", ["EPYC", "Haswell"])
def test_on_another_cpu(project: Project, cpu: str) -> None:
    # An emulated CPU has no other instructions than its own, and takes minutes.
    project.limit = 1200
    assert run_stages(project, "qemu-x86_64", "-cpu", cpu) == committed(ROOT)


@pytest.mark.parametrize("capability", ["default", "avx512"])
def test_other_limits_of_the_environment_are_overridden(project: Project, capability: str) -> None:
    other = [f"ATEN_CPU_CAPABILITY={capability}", "ONEDNN_MAX_CPU_ISA=SSE41", "MKL_CBWR=AUTO"]
    assert run_stages(project, "env", *other) == committed(ROOT)


SHOWN = f"import stages, json, os, torch; print(json.dumps([os.environ.get(name) for name in {list(LIMITS)}]))"


def limits(folder: Path, environment: dict[str, str], code: str = SHOWN) -> list[str | None]:
    """Return the limits of a process that imports stages in a folder, of a parent with the `environment`."""
    outside = {name: value for name, value in clean_environment().items() if name not in {*LIMITS, OUTER}}
    command = [sys.executable, "-c", code]
    shown = subprocess.check_output(command, cwd=folder, env=outside | {"PYTHONPATH": str(ROOT)} | environment)
    values: list[str | None] = json.loads(shown)
    return values


def folder_of(level: str, folder: Path) -> Path:
    """Return a folder whose params.yaml has the level."""
    folder.mkdir()
    (folder / "params.yaml").write_text(f"train:\n  determinism: {level}\n")
    return folder


@pytest.mark.parametrize("level", ["machine", "off"])
def test_other_levels_have_the_environment_s_own_limits(tmp_path: Path, level: str) -> None:
    own = folder_of(level, tmp_path / level)
    assert limits(own, {}) == [None, None, None]
    assert limits(own, {"ATEN_CPU_CAPABILITY": "default"}) == ["default", None, None]
    # A sweep, or whatever imports stages, may start a training at another level.
    parent = folder_of("portable", tmp_path / "portable")
    child = (
        f"import stages, os, subprocess, sys; os.chdir({str(own)!r}); subprocess.run([sys.executable, '-c', {SHOWN!r}])"
    )
    assert limits(parent, {}) == list(LIMITS.values())
    assert limits(parent, {}, child) == [None, None, None]
    assert limits(parent, {"MKL_CBWR": "SSE4_2"}, child) == [None, None, "SSE4_2"]
    # What is set in between is somebody's wish.
    wish = child.replace("subprocess.run(", "os.environ['MKL_CBWR'] = 'AVX'; subprocess.run(")
    assert limits(parent, {}, wish) == [None, None, "AVX"]


@pytest.mark.parametrize("text", ["train: {}", "train: [", "- 1", None])
def test_params_that_say_nothing_are_portable(tmp_path: Path, text: str | None) -> None:
    # What is wrong with them is said when they are read.
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    assert limits(tmp_path, {}) == list(LIMITS.values())


@pytest.mark.parametrize(
    ("code", "level", "fails"),
    [
        ("import stages, torch", "portable", False),
        ("import torch, stages", "portable", True),
        ("import stages, torch", "machine", True),
        ("import stages, torch", "off", False),
    ],
)
def test_torch_that_was_imported_otherwise_is_an_error(tmp_path: Path, code: str, level: str, fails: bool) -> None:
    program = f"{code}; from stages.training.determinism import set_up; print(set_up('cpu', 1, {level!r}))"
    outside = {name: value for name, value in clean_environment().items() if name not in {*LIMITS, OUTER}}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder_of("portable", tmp_path / "here"),
        env=outside | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode != 0) == fails, ended.stderr
    assert ended.stdout == ("" if fails else "cpu\n")
    message = f"InputError: train.determinism: {level!r}, but torch was imported for another level or before stages; "
    assert not fails or message in ended.stderr


def test_an_environment_with_the_limits_may_import_torch_first(tmp_path: Path) -> None:
    program = "import torch, stages; from stages.training.determinism import set_up; set_up('cpu', 1, 'portable')"
    environment = clean_environment() | LIMITS | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)

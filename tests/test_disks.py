"""Disks that are full or read-only: one line says so, as early as can be, and nothing is left half-written.

They are real ones, of a name space that Linux lets any user make; where Ubuntu does not, as root:
sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Project, clean_environment

# Mounts a new disk, runs a command, and lists what is on the disk at its end.
MOUNTED = """
mount -t tmpfs -o "$1" none "$2" && cd "$3" || exit 99
folder=$2
shift 3
"$@"
code=$?
echo "left: $(find "$folder" -mindepth 1 ! -name 'torchinductor_*')"
exit $code
"""
# Fills the disk as soon as the training has its first weights.
FILLED = """
disk=$1
shift
{ until [ -s "$disk/.net.safetensors.partial" ]; do sleep 0.1; done; sleep 0.5; cat /dev/zero > "$disk/filler"; } &
"$@"
"""


def on_disk(options: str, folder: Path, root: Path, *command: str) -> list[str]:
    """A command to run in `root` with a new disk, mounted with these options, at `folder`."""
    return ["unshare", "-rm", "sh", "-c", MOUNTED, "sh", options, str(folder), str(root), *command]


@pytest.fixture(scope="module")
def result(make_project: Callable[[], Project]) -> Project:
    """A copy of the project with results, and a folder for the disk."""
    project = make_project()
    project("dvc", "repro")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "results", "--allow-empty")
    (project.root / "disk").mkdir()
    return project


STAGES = {
    "prepare": ["disk/prepared"],
    "train": ["data/prepared", "disk/net.safetensors", "disk/train.csv"],
    "evaluate": ["models/net.safetensors", "data/prepared", "metrics/train.csv", "disk/evaluate.json", "disk/plots"],
}


@pytest.mark.parametrize(
    ("options", "reason"), [("size=140k", "No space left on device"), ("ro", "Read-only file system")]
)
@pytest.mark.parametrize("stage", STAGES)
def test_outputs_that_find_no_place_are_one_line(result: Project, stage: str, options: str, reason: str) -> None:
    n_runs = len(result.runs())
    stage_s = ["python", "-m", f"stages.{stage}", *STAGES[stage]]
    first, *rest = result(*on_disk(options, result.root / "disk", result.root, *stage_s), fails=True).splitlines()
    assert first.startswith("error: disk/")
    assert reason in first
    assert rest == ["left: "]
    assert len(result.runs()) == n_runs
    assert list((result.root / ".repronet/locks").iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_filled_meanwhile_has_room_for_the_training(result: Project) -> None:
    result.edit("params.yaml", "  epochs: 30 ", "  epochs: 100 ")
    stage = ["python", "-m", "stages.train", *STAGES["train"]]
    filled = ["sh", "-c", FILLED, "sh", "disk", *stage]
    output = result(*on_disk("size=4m", result.root / "disk", result.root, *filled)).splitlines()
    result("git", "checkout", "params.yaml")
    assert {line.rsplit("/", 1)[-1] for line in output[-3:]} == {"filler", "net.safetensors", "train.csv"}
    assert [line for line in output if line.startswith("kept epoch")]


ARRAY = """
import sys
from pathlib import Path
from stages.sources.pixels import new_array
array = new_array(Path(sys.argv[1], "array"), (600, 32, 32))
try:
    with Path(sys.argv[1], "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
except OSError:
    array[:] = 1
"""


def test_an_array_has_its_bytes_before_they_are_written(tmp_path: Path) -> None:
    command = on_disk("size=1m", tmp_path, ROOT, sys.executable, "-c", ARRAY, str(tmp_path))
    subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True)


# TMPDIR is where the model is written first; a store that fits has 1 MB.
DISKS = {
    "full": ("size=16k", {"TMPDIR": "disk"}, "No space left on device"),
    "small": ("size=200k", {"TMPDIR": "disk"}, "No space left on device"),
    "store": ("size=100k", {"MLFLOW_TRACKING_URI": "sqlite:///disk/mlflow.db"}, "database or disk is full"),
    "artifacts": ("size=1200k", {"MLFLOW_TRACKING_URI": "sqlite:///disk/mlflow.db"}, "No space left on device"),
    "read-only": ("ro", {"MLFLOW_TRACKING_URI": "sqlite:///disk/mlflow.db"}, "Read-only file system"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISKS)
def test_a_place_that_tracking_lacks_costs_no_result(result: Project, name: str) -> None:
    options, changes, reason = DISKS[name]
    disk = result.root / "disk"
    own: dict[str, Any] = {"MLFLOW_TRACKING_URI": f"sqlite:///{result.root}/mlflow.db.{name}"}
    own |= {key: value.replace("disk", str(disk)) for key, value in changes.items()}

    outputs = [f"of-{name}/evaluate.json", f"of-{name}/plots"]
    stage = ["python", "-m", "stages.evaluate", *STAGES["evaluate"][:3], *outputs]
    warning, said, *_ = result(*on_disk(options, disk, result.root, *stage), **own).splitlines()
    assert warning.startswith("warning: MLflow at sqlite:///")
    assert reason in warning
    assert said.startswith("test accuracy")
    for file in ("evaluate.json", "plots/predictions.csv"):
        expected = result.root / (f"metrics/{file}" if file.endswith("json") else file)
        assert (result.root / f"of-{name}" / file).read_bytes() == expected.read_bytes()

    sync = ["python", "-m", "tools.sync", "HEAD"]
    printed = result(*on_disk(options, disk, result.root, *sync), fails=True, **own).split("left: ")[0]
    assert reason in printed
    assert printed.count("error: ") == 1
    assert len(printed.splitlines()) <= 4, "the journal, the result, all, and the error"
    shutil.rmtree(result.root / ".repronet/journals")


# A store that becomes read-only.
COPIED = """
cp mlflow.db disk && mount -o remount,ro disk && exec "$@"
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["tools.ui", "--port", "0"], "error: "),
        (["tools.sync", "HEAD"], "HEAD: in place"),
        (["tools.compare", "best", "best"], "The same in all"),
        (["stages.train", "data/prepared", "net", "train.csv"], "warning: "),
    ],
)
def test_a_read_only_store(result: Project, command: list[str], said: str) -> None:
    disk, root = result.root / "disk", result.root
    copied = ["sh", "-c", COPIED, "sh", "python", "-m", *command]
    uri: dict[str, Any] = {"MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db"}
    printed = result(*on_disk("size=8m", disk, root, *copied), fails=said == "error: ", **uri)
    said = said.replace("HEAD", result("git", "rev-parse", "HEAD")[:9])
    assert len([line for line in printed.splitlines() if line.startswith(said)]) == 1
    assert "Traceback" not in printed
    if command[0] in ("tools.ui", "stages.train"):
        assert "readonly database" in printed or "Read-only file system" in printed

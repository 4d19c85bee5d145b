"""docs/notebook.ipynb, run as it stands there, in a copy of the project."""

import json
import re
import xml.etree.ElementTree as ET
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, Project, clean_environment

NAME = "docs/notebook.ipynb"
TREES = ("data", "models", "metrics", "plots", "mlflow.db", "mlartifacts", ".repronet")


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(ROOT / NAME, as_version=4)  # type: ignore[no-untyped-call]


def files(project: Project) -> dict[Path, tuple[int, int]]:
    """What is in the folders that the stages write by default, with sizes and times."""
    found = [path for tree in TREES for path in [project.root / tree, *(project.root / tree).rglob("*")]]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if path.exists()}


def shown(cell: Any, kind: str = "text/plain") -> str:
    """What a cell's last line gives."""
    [output] = [output for output in cell.outputs if output.output_type == "execute_result"]
    return str(output.data[kind])


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def table(cell: Any) -> dict[str, dict[str, float]]:
    """The table of numbers that a cell shows: rows by their names."""
    html = re.search("<table.*</table>", shown(cell, "text/html"), re.DOTALL)
    assert html
    header, *rows = [[part.text or "" for part in row] for row in ET.fromstring(html[0]).iter("tr")]
    # The row below the header has the name of the rows alone.
    return {name: dict(zip(header[1:], map(float, values), strict=True)) for name, *values in rows if any(values)}


def test_it_is_committed_as_it_was_written(committed: Any) -> None:
    nbformat.validate(committed)
    assert committed.metadata.kernelspec.name == "python3"
    for cell in committed.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None), cell.id
        assert not cell.metadata, cell.id
    # A text says what each cell of code does.
    kinds = [cell.cell_type for cell in committed.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert not [cell.id for cell in committed.cells if cell.source.startswith(("!", "%"))]


def test_it_runs_and_leaves_the_project_as_it_was(
    committed: Any, project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    project("dvc", "repro")
    project("git", "commit", "-q", "--allow-empty", "-am", "results")  # nothing new where the CPU is that of dvc.lock
    before, own = files(project), tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(own / "runtime"))
    client = NotebookClient(
        deepcopy(committed),
        timeout=120,  # of a cell
        kernel_name="python3",
        resources={"metadata": {"path": str(project.root / "docs")}},  # where the kernel starts, as in Jupyter
    )
    # Raises the error of a cell that fails.
    client.execute(env=clean_environment() | {"IPYTHONDIR": str(own / "ipython"), "TMPDIR": str(own)})
    cells = {cell.id: cell for cell in client.nb.cells}

    assert "train.batch_size: 0, should be" in printed(cells["wrong"])
    assert printed(cells["train"]).count("kept epoch") == 2
    assert "image/png" in str(cells["curves"].outputs)
    assert "image/png" in str(cells["mistakes"].outputs)
    metrics = table(cells["metrics"])
    assert min(metrics["accuracy"].values()) > 0.95
    correct = sum(float(row[name]) for name, row in table(cells["confusion"]).items() if name in row)
    assert correct / 359 == pytest.approx(metrics["accuracy"]["SGD"], abs=1e-6)
    assert printed(cells["predict"]).startswith(f"{metrics['accuracy']['SGD']:.4f} of 359 images")
    predicted = re.findall(r"\d-(\w+)\.png +(\w+) ", shown(cells["predicted"]))
    assert len(predicted) == 3
    assert all(label == first for label, first in predicted)

    runs = table(cells["table"])
    assert list(runs) == ["SGD", "AdamW"]
    for name, run in runs.items():
        assert run["test/accuracy"] == pytest.approx(metrics["accuracy"][name], abs=1e-6)
    assert "AdamW against SGD: " in printed(cells["compare"])
    assert shown(cells["same"]) == "True"
    values = json.loads((project.root / "metrics/evaluate.json").read_text())
    assert metrics["accuracy"]["SGD"] == pytest.approx(values["accuracy"], abs=1e-6)

    # Nothing is said to have gone wrong, and nothing is left.
    assert "warning" not in "".join(printed(cell) for cell in client.nb.cells if cell.cell_type == "code").lower()
    assert files(project) == before
    assert project("git", "status", "--porcelain") == ""
    assert not list(own.rglob("mlflow.db"))

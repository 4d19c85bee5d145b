"""What the tests of tools share."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Project
from tools.runs import Runs


@pytest.fixture
def store(compared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The store of four evaluated runs, in a copy that a test may add to; the artifacts are the original's."""
    shutil.copy(compared.root / "mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Runs()

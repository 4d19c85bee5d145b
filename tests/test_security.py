"""What SECURITY.md promises: each promise names the tests that attack it, and they are there."""

import ast
import re
from secrets import token_hex

import pytest

from tests.conftest import ROOT, Project, free_port, served

NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())


def test_every_promise_is_attacked() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    assert all("`tests/" in row for row in rows[1:])
    assert len(rows) >= 12


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_attack_is_there(file: str, name: str) -> None:
    functions = [
        node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)
    ]
    assert name in functions


@pytest.mark.slow
def test_passwords_are_nowhere(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    port, store = free_port(), tmp_path_factory.mktemp("store")
    server, password = Project.at(store), token_hex(8)
    project("git", "remote", "add", "origin", f"https://somebody:{password}@example.org/project.git")
    project("dvc", "remote", "add", "--local", "-d", "storage", f"https://somebody:{password}@example.org/data")
    uri = f"http://somebody:{password}@127.0.0.1:{port}"
    project.edit("params.yaml", "epochs: 30 ", "epochs: 2 ")
    printed = ""
    with served(
        server, "mlflow", "server", "--port", str(port), "--backend-store-uri", f"sqlite:///{store}/m.db", port=port
    ):
        for command in (
            ("dvc", "repro", "--force"),
            ("python", "-m", "tools.sync"),
            ("python", "-m", "tools.compare", "best", "best", "--html", "page.html"),
        ):
            printed += project(*command, MLFLOW_TRACKING_URI=uri)
    # Nobody answers now.
    printed += project("dvc", "repro", "--force", "--single-item", "train", MLFLOW_TRACKING_URI=uri)
    printed += project("python", "-m", "tools.sync", fails=True, MLFLOW_TRACKING_URI=uri)
    assert f"MLflow at http://***@127.0.0.1:{port} failed" in printed
    assert password not in printed
    own = {project.root / ".git/config", project.root / ".dvc/config.local"}
    for path in [*project.root.rglob("*"), *store.rglob("*")]:
        if path.is_file() and path not in own:
            assert password.encode() not in path.read_bytes(), path

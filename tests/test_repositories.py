"""The project where it has no repository, where it is a folder of one, where git rewrites files: what works there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, clean_environment, free_port, served

SHORT = ("-S", "train.epochs=2")


@pytest.mark.slow
def test_a_download_without_git(make_project: Callable[[], Project]) -> None:
    project = make_project()
    outside: dict[str, Any] = {"GIT_CEILING_DIRECTORIES": str(project.root.parent)}
    project("rm", "-rf", ".git", "dvc.lock")
    assert "is not a git repository" in project("dvc", "repro", fails=True, **outside)
    project("dvc", "config", "--local", "core.no_scm", "true", **outside)
    output = project("dvc", "repro", **outside)
    lost = "warning: the run in MLflow will not say which code made it: git rev-parse HEAD failed: fatal: not a git rep"
    assert output.count(lost) == 2
    [run] = project.runs()
    assert run.info.status == "FINISHED"
    assert not [name for name in run.data.tags if "git" in name]
    assert "workspace: in place" in project("python", "-m", "tools.sync", "workspace", **outside)
    assert "0.98" in project("python", "-m", "tools.compare", "best", "no commit", **outside)
    for tool in (["sync"], ["sync", "HEAD"], ["sweep", *SHORT]):
        errors = project("python", "-m", f"tools.{tool[0]}", *tool[1:], fails=True, **outside).splitlines()
        assert [line[:7] for line in errors] == ["error: "], errors
        assert "fatal: not a git repository" in errors[0]
    for tool in (["ui"], ["serve"]):
        port = free_port()
        with served(project, "python", "-m", f"tools.{tool[0]}", "--port", str(port), port=port, **outside):
            pass


@pytest.mark.slow
def test_a_folder_of_a_repository(tmp_path: Path) -> None:
    around = Project(tmp_path)
    around(
        "sh", "-c", "mkdir -p mono/sub; git mv $(git ls-files | grep -o '^[^/]*' | sort -u) mono/sub; echo > mono/else"
    )
    around("git", "add", "-A")
    around("git", "commit", "-q", "-m", "moved")
    project = Project.at(tmp_path / "mono/sub")
    project("dvc", "repro", "--force")
    project("git", "commit", "-q", "--allow-empty", "-am", "results")  # nothing new where the CPU is that of dvc.lock
    project("dvc", "exp", "run", "--temp", "-n", "one", *SHORT)
    project.edit("README.md", "# Repronet\n", "# Ours\n")
    (project.root.parent / "else").write_text("changed\n")
    head = (tmp_path / ".git/HEAD").read_bytes()
    swept = project("python", "-m", "tools.sweep", "--name", "two", *SHORT, GIT_DIR=str(tmp_path / ".git"))
    assert "two: validation accuracy" in swept
    assert (tmp_path / ".git/HEAD").read_bytes() == head
    assert "two: validation accuracy" not in project("python", "-m", "tools.sweep", "--name", "two", *SHORT), (
        "it is done"
    )
    synced = project("python", "-m", "tools.sync").splitlines()
    assert [line for line in synced if ": in place" not in line] == ["in all: 4 in place"]
    compared = project("python", "-m", "tools.compare", "one", "two")
    assert re.search(r"changed files +none +mono/sub/README.md \(\w{8}\)\n", compared)
    tags = next(run for run in project.runs() if run.info.run_name == "two").data.tags
    assert tags["git.dirty"] == "true"


@pytest.mark.slow
def test_no_user_is_configured(project: Project) -> None:
    for key in ("user.name", "user.email"):
        project("git", "config", "--unset", key)
    nobody = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    output = project("python", "-m", "tools.sweep", *SHORT, fails=True, **nobody)
    assert output.splitlines()[-1] == (
        "error: DVC commits experiments, and git has no user.name: git config --global user.name …"
    )
    assert not list((project.root / ".dvc/tmp").glob("sweeps/*/*"))


def test_a_repository_of_another_owner(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    # As in a container's mount; git's own tests set this.
    git = tmp_path_factory.mktemp("bin") / "git"
    real = project("sh", "-c", "command -v git").strip()
    git.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"\n')
    git.chmod(0o755)
    environment = {"PATH": f"{git.parent}:{clean_environment()['PATH']}", "GIT_CONFIG_GLOBAL": "/dev/null"}
    for tool in (["tools.sync"], ["tools.sweep", *SHORT]):
        output = project("python", "-m", *tool, fails=True, **environment)
        assert output.startswith("error: ")
        assert f"git config --global --add safe.directory {project.root}" in output

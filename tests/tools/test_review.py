"""The comment for a pull request, of real commits, and the workflow that writes it."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, YAML_READER, Project

WORKFLOW: dict[str, Any] = YAML_READER.load((ROOT / ".github/workflows/review.yaml").read_text())
JOBS = WORKFLOW["jobs"]
PLACE = "https://example.org/o/r/raw/pictures-1/abc"


def script(job: str) -> str:
    """What the step of a job that has its name, or `review`, runs."""
    return next(str(step["run"]) for step in JOBS[job]["steps"] if step.get("name") in ("review", "comment"))


def table_of(page: str, kind: str) -> list[list[str]]:
    """The rows of a table, each with its cells."""
    section = page.split(f"### {kind}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]


@pytest.fixture(scope="module")
def changed(make_project: Callable[[], Project]) -> Project:
    """A copy with a second commit, of other params and what comes of them."""
    project = make_project()
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 2 ")
    project("dvc", "repro")
    project("git", "commit", "-q", "-am", "two epochs")
    return project


def test_what_differs_is_in_tables(changed: Project) -> None:
    printed = changed("python", "-m", "tools.review", "HEAD~1", "--out", "scores/a.md", "--pictures", f"{PLACE}/")
    page = (changed.root / "scores/a.md").read_text()
    assert page.startswith(f"## Compared with {changed('git', 'rev-parse', 'HEAD~1')[:9]}\n\n")
    assert printed == f"scores/a.md: {page.splitlines()[2]}\n"
    assert page.splitlines()[2] == "`dvc.lock` is reproduced: this machine comes to the committed digests."
    params = table_of(page, "Params")
    assert params[0][:2] == ["Path", "Param"]
    assert params[2:] == [["params.yaml", "train.epochs", "30", "2"]]
    metrics = {row[1]: row for row in table_of(page, "Metrics")}
    before, after = map(float, metrics["accuracy"][2:4])
    assert before > after > 0
    assert float(metrics["accuracy"][4]) == pytest.approx(after - before, abs=1e-4)
    assert page.endswith(f"### Confusion\n\n![Confusion matrix]({PLACE}/confusion.png)\n")


def test_what_does_not_differ_is_said(changed: Project) -> None:
    changed("python", "-m", "tools.review", "HEAD", "--out", "scores/b.md")
    lines = (changed.root / "scores/b.md").read_text().splitlines()
    assert [line for line in lines[4:] if line] == [
        "### Metrics",
        "No metrics differ.",
        "### Params",
        "No params differ.",
    ]


def test_results_that_are_not_the_committed_ones(changed: Project) -> None:
    lock = (changed.root / "dvc.lock").read_text()
    said = r"scores/c.md: \*\*`dvc.lock` is not reproduced\*\*: "
    command = ("python", "-m", "tools.review", "HEAD", "--out", "scores/c.md")
    try:
        digest = re.search(r"path: models/net.safetensors\n +hash: md5\n +md5: (\w+)", lock)
        assert digest
        (changed.root / "dvc.lock").write_text(lock.replace(digest[1], "0" * 32))
        assert re.fullmatch(f"{said}this machine comes to another `models/net.safetensors`.\n", changed(*command))
        (changed.root / "dvc.lock").write_text(lock.replace("cmd: python -m stages prepare", "cmd: python -m prepare"))
        assert re.fullmatch(f"{said}the outputs are the committed ones, the inputs are not.\n", changed(*command))
        (changed.root / "dvc.lock").unlink()
        assert changed(*command, fails=True) == "error: there is no dvc.lock: run dvc repro first\n"
    finally:
        (changed.root / "dvc.lock").write_text(lock)


@pytest.mark.parametrize("name", ["nowhere", "--output=x", "HEAD:params.yaml"])
def test_a_base_that_git_does_not_know(changed: Project, name: str) -> None:
    said = changed("python", "-m", "tools.review", "--out", "scores/d.md", "--", name, fails=True)
    assert said == f"error: no commit is called {name!r} here; if it is on a server, git fetch brings it\n"
    assert not (changed.root / "scores/d.md").exists()


def test_only_the_job_that_runs_no_code_may_write() -> None:
    assert WORKFLOW["on"] == "pull_request"
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOBS["reproduce"]
    assert JOBS["comment"]["permissions"] == {"contents": "write", "pull-requests": "write"}
    assert JOBS["comment"]["if"] == "github.event.pull_request.head.repo.full_name == github.repository"
    assert [step["uses"] for step in JOBS["comment"]["steps"] if "uses" in step] == ["actions/download-artifact@v4"]
    assert not re.search(r"python|make|dvc", script("comment"))
    # What others name, such as a branch, comes to a shell in its environment, and is no part of a command.
    assert not [step for job in JOBS.values() for step in job["steps"] if "${{" in step.get("run", "")]


def test_it_is_set_up_as_ci_is() -> None:
    [ci] = YAML_READER.load((ROOT / ".github/workflows/ci.yaml").read_text())["jobs"].values()
    checkout, python = JOBS["reproduce"]["steps"][:2]
    assert [checkout["uses"], python] == [ci["steps"][0]["uses"], ci["steps"][1]]
    assert JOBS["reproduce"]["runs-on"] == ci["runs-on"]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    assert JOBS["reproduce"]["steps"][2] == {"run": "make repro"}


def test_the_workflow_s_scripts(changed: Project, tmp_path: Path) -> None:
    (changed.root / ".venv").symlink_to(sys.prefix)
    summary, commit = tmp_path / "summary.md", changed("git", "rev-parse", "HEAD").strip()
    given: dict[str, Any] = {"BASE": "HEAD~1", "PICTURES": PLACE, "ALL": "https://example.org/1"}
    given["GITHUB_STEP_SUMMARY"] = str(summary)
    changed("bash", "-ec", script("reproduce"), **given)
    page = (changed.root / "review.md").read_text()
    assert page == summary.read_text()
    assert page.endswith(f"({PLACE}/confusion.png)\n\n[All pictures](https://example.org/1)\n")

    # The next job's folder has what download-artifact puts there; `gh` notes what it is asked.
    there = Project.at(tmp_path / "there")
    changed("mkdir", "-p", f"{there.root}/review", f"{tmp_path}/bin")
    changed("cp", "-r", "plots/pictures", str(there.root))
    changed("mv", "review.md", f"{there.root}/review")
    there("git", "init", "-q", "--bare", str(tmp_path / "server/o/r"))
    (tmp_path / "bin/gh").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "bin/gh").chmod(0o755)
    path = f"{tmp_path}/bin:{changed('sh', '-c', 'echo $PATH').strip()}"
    for number in ("1", "1"):  # a second push to the pull request
        given = {"NUMBER": number, "COMMIT": commit, "GITHUB_SERVER_URL": f"file://{tmp_path}/server", "PATH": path}
        there("bash", "-ec", script("comment"), GITHUB_REPOSITORY="o/r", **given)
        there("mv", f"branch/{commit}/confusion.png", "pictures")
        there("rm", "-rf", "branch")
    files = there("git", "-C", str(tmp_path / "server/o/r"), "ls-tree", "-r", "--name-only", "pictures-1").split()
    assert files == [f"{commit}/confusion.png"], "others may show images that are not for all to see"
    assert (tmp_path / "asked").read_text().splitlines()[:2] == [
        "auth setup-git",
        "pr comment 1 --edit-last --create-if-none --body-file ../review/review.md",
    ]

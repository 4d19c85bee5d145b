"""Where a run comes from: what differs from the commit, as git applies it again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.artifacts import load_text

from stages.tracking import provenance
from tests.conftest import Project
from tests.tracking.conftest import run_stages


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("stages/training/metrics.py", None, b"text"),
        ("dos.txt", b"one\r\ntwo\r\n", b"one\r\n2\r\n"),
        ("latin.txt", b"caf\xe9\n", b"th\xe9\n"),
        ("blob.bin", bytes(range(256)), bytes(range(255, -1, -1)) + b"\n\n"),
        ("a name with spaces \u00fc.txt", b"no end", b"another end\n\n"),
    ],
)
def test_the_patch_makes_the_commit_what_was_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes | None, after: bytes
) -> None:
    monkeypatch.chdir(project.root)
    for setting in ("color.ui=always", "diff.noprefix=true", "core.quotepath=true"):
        project("git", "config", *setting.split("="))
    if before is not None:
        (project.root / name).write_bytes(before)
        project("git", "add", "-A")
        project("git", "commit", "-qm", "before")
    (project.root / name).write_bytes(after)
    (project.root.parent / "run.patch").write_bytes(provenance.patch())
    project("git", "checkout", "-q", ".")
    assert (project.root / name).read_bytes() != after
    project("git", "apply", "../run.patch")
    assert (project.root / name).read_bytes() == after


def test_changes_since_the_commit_are_logged(digits: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit("stages/training/metrics.py", '"""What is measured', '"""What we measured')
    (project.root / "new.py").touch()
    monkeypatch.chdir(project.root)
    run_stages(digits, project.root, {}, {}, only="train")
    [run] = project.runs()
    assert run.data.tags["git.dirty"] == "true"
    assert "new.py" in run.data.tags["git.untracked"]
    assert '+"""What we measured' in load_text(f"{run.info.artifact_uri}/git.patch")


def test_a_process_that_is_gone_is_told_from_a_living_one_and_an_unknown_one() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    [here] = provenance.of_writer().values()
    machine, number, start = here.rsplit(" ", 2)
    assert int(number) == os.getpid()
    assert provenance.has_ended(f"{machine} {ended.pid} {start}")
    assert provenance.has_ended(f"{machine} {number} {int(start) - 3600}"), "another process had that number"
    assert not provenance.has_ended(here)
    assert not provenance.has_ended(f"{machine} {number} {int(start) + 5}"), "the clock was set"
    assert not provenance.has_ended(f"other-{machine} {ended.pid} {start}")
    assert not provenance.has_ended("")

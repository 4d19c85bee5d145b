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
    assert "git.untracked" not in run.data.tags
    patch = load_text(f"{run.info.artifact_uri}/git.patch")
    assert '+"""What we measured' in patch
    assert "diff --git a/new.py b/new.py\nnew file mode" in patch


@pytest.mark.parametrize("folder", [".", "sub/project"])
def test_new_files_are_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    project = Project.at(tmp_path / "repository" / folder)
    project.root.mkdir(parents=True)
    project("git", "init", "-q", str(tmp_path / "repository"))
    project("git", "config", "user.name", "test")
    project("git", "config", "user.email", "test@localhost")
    (project.root / "old.py").write_text("1\n")
    (project.root / ".gitignore").write_text("/ignored\n")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "first")
    new = {
        "stages/nets/__init__.py": b"",
        'stages/nets/m\u00fc "t.py': b"caf\xe9\r\n",
        "blob.bin": bytes(range(256)) * 3,
    }
    others = {
        "old.py": b"2\n",
        "ignored": b"x",
        "data/raw/a.png": b"x",
        "metrics/x": b"x",
        "large.bin": b"x" * 1_000_001,
    }
    for name, content in {**new, **others}.items():
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_bytes(content)
    (project.root / "blob.bin").chmod(0o755)
    (project.root / "link").symlink_to("old.py")
    monkeypatch.chdir(project.root)
    patch, left_out = provenance.changes()
    assert left_out == ["large.bin"]
    project("git", "clone", "-q", str(tmp_path / "repository"), str(tmp_path / "clone"))
    subprocess.run(["git", "apply"], input=patch, cwd=tmp_path / "clone", check=True)
    rebuilt = tmp_path / "clone" / folder
    assert {name: (rebuilt / name).read_bytes() for name in new} == new
    assert (rebuilt / "old.py").read_text() == "2\n"
    assert os.access(rebuilt / "blob.bin", os.X_OK)
    assert (rebuilt / "link").readlink() == Path("old.py")
    assert not {"ignored", "data", "metrics", "large.bin"} & {path.name for path in rebuilt.iterdir()}


def test_a_new_file_that_is_too_large_is_said(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.root / "large.bin").write_bytes(b"x" * 1_000_001)
    monkeypatch.chdir(project.root)
    assert provenance.of_process({}).tags["git.untracked"] == "large.bin"
    assert capsys.readouterr().err == (
        "warning: this run cannot be rebuilt without large.bin: git does not have it, and a run takes new files of up"
        " to 1 MB: git add, or .gitignore where it plays no part\n"
    )


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
    assert not provenance.has_ended(f"{machine} other {ended.pid} {start}"), "its name begins with this one's"
    assert not provenance.has_ended("")

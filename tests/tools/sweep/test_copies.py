"""Copies hold what the workspace holds, whatever git leaves out, or they are not made."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.base.errors import InputError
from stages.tracking import provenance
from tests.conftest import Project, write_image
from tools.sweep.copies import copy_repository

OWN = Path("data/raw/own")
TRACKED = "git add -A; git commit -qm all; "
OTHER = "echo other > data/raw/own/a/0.png"
REPOSITORY = (
    "cd data/raw/own; git init -q; git add -A; git -c user.name=a -c user.email=a@b commit -qm own; cd ../../..; "
)


@pytest.fixture
def brought(make_project: Callable[[], Project], monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project, the current directory, with images of the user's."""
    project = make_project()
    monkeypatch.chdir(project.root)
    for seed in range(8):
        write_image(OWN / "ab"[seed % 2] / f"{seed}.{('png', 'jpg')[seed // 4]}", seed)
    return project


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "true",  # not tracked
        "echo '*.jpg' >> .gitignore",
        "echo '*.jpg' >> data/raw/own/.gitignore",
        "echo '*.jpg' >> .git/info/exclude",
        "echo '*.jpg' > .git/all; git config core.excludesFile $PWD/.git/all",
        "echo '*.jpg' >> .gitignore; git add .gitignore data/raw/own/a; git commit -qm some",
        TRACKED + OTHER,
        TRACKED + "git update-index --assume-unchanged data/raw/own/a/0.png; " + OTHER,
        TRACKED + "git update-index --skip-worktree data/raw/own/a/0.png; " + OTHER,
        REPOSITORY,
        REPOSITORY + "git -c advice.addEmbeddedRepo=false add data; git commit -qm own",  # as a submodule is kept
    ],
)
def test_a_copy_has_what_git_leaves_out(brought: Project, tmp_path: Path, command: str) -> None:
    Path("data/weights/start.pt").write_bytes(b"weights")
    Path("stages/training/mine.py").write_text("MINE = 1\n")  # code that git does not track
    brought("bash", "-ec", command)
    inputs = [OWN, Path("data/weights/start.pt")]
    copy_repository(tmp_path / "copy", "HEAD", provenance.patch(), inputs)
    copied = files(tmp_path / "copy" / OWN)
    assert len([name for name in copied if name.endswith(("png", "jpg"))]) == 8
    assert copied == {name: content for name, content in files(brought.root / OWN).items() if ".git/" not in name}
    assert (tmp_path / "copy/data/weights/start.pt").read_bytes() == b"weights"
    assert (tmp_path / "copy/stages/training/mine.py").exists()
    assert not (tmp_path / "copy/data/prepared").exists()


def test_links_of_the_user_are_copied_as_links(brought: Project, tmp_path: Path) -> None:
    links = {"again": "a", "a/20.png": "0.png", "none": "nowhere.png", "out": "/etc/hostname"}
    for name, target in links.items():
        (OWN / name).symlink_to(target)
    copy_repository(tmp_path / "copy", "HEAD", b"", [OWN])
    copied = tmp_path / "copy" / OWN
    assert {name: str((copied / name).readlink()) for name in links} == links
    assert (copied / "a/0.png").samefile(brought.root / OWN / "a/0.png")


@pytest.mark.parametrize(
    ("command", "path", "message"),
    [
        ("true", "data/rawx", "data/rawx: no such file or folder"),
        (
            "mv data/raw/own ../outside-$(basename $PWD)",
            "../outside-NAME",
            "../outside-NAME is outside of the repository.* needed, ROOT/../outs",
        ),
        (
            "mv data/raw/own ../linked-$(basename $PWD); ln -s ../../../linked-$(basename $PWD) data/raw/own",
            "data/raw/own",
            "data/raw/own is outside of the repository.* needed, ROOT/../linked",
        ),
        (
            "dvc add -q data/raw/own",
            "data/raw/own",
            "data/raw/own.dvc is not in git, .*git add data/raw/own.dvc data/raw/.gitignore && git commit",
        ),
        (
            "dvc add -q data/raw/own; git add -A; git commit -qm own; rm data/raw/own/a/0.png",
            "data/raw/own",
            "data/raw/own is not what data/raw/own.dvc says, .*dvc add data/raw/own makes it so",
        ),
        (
            "dvc add -q data/raw/own/a; git add -A; git commit -qm own; rm data/raw/own/a/0.png",
            "data/raw/own",
            "data/raw/own/a is not what data/raw/own/a.dvc says",
        ),
    ],
)
def test_what_a_copy_would_not_have_stops_it(
    brought: Project, tmp_path: Path, command: str, path: str, message: str
) -> None:
    brought("bash", "-ec", command)
    name = brought.root.name
    message = message.replace("ROOT/..", re.escape(str(brought.root.parent))).replace("NAME", name)
    with pytest.raises(InputError, match=f"(?s){message}"):
        copy_repository(tmp_path / "copy", "HEAD", provenance.patch(), [Path(path.replace("NAME", name))])


def test_data_elsewhere_by_an_absolute_path_are_read_there(brought: Project, tmp_path: Path) -> None:
    copy_repository(tmp_path / "copy", "HEAD", b"", [brought.root / OWN, tmp_path])
    assert not (tmp_path / "copy" / OWN).exists()


def test_what_dvc_keeps_comes_from_its_cache(brought: Project, tmp_path: Path) -> None:
    brought("dvc", "add", "-q", str(OWN))
    brought("git", "add", "-A")  # staged is enough
    copy_repository(tmp_path / "copy", "HEAD", provenance.patch(), [OWN])
    assert not (tmp_path / "copy" / OWN).exists()
    Project.at(tmp_path / "copy")("dvc", "checkout", "-q", f"{OWN}.dvc")
    assert files(tmp_path / "copy" / OWN) == files(brought.root / OWN)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["untracked", "ignored", "by DVC"])
def test_own_images_are_in_every_experiment(make_project: Callable[[], Project], kept: str) -> None:
    project = make_project()
    for seed in range(40):
        write_image(project.root / OWN / "ab"[seed % 2] / f"{seed:02}.{('png', 'bmp')[seed // 20]}", seed)
    if kept == "ignored":
        (project.root / ".git/info/exclude").write_text("*.bmp\n")
    if kept == "by DVC":
        project("dvc", "add", "-q", str(OWN))
        project("git", "add", "-A")
        project("git", "commit", "-q", "-m", "own images")
    own = ["prepare.source=folder", f"prepare.path={OWN}", "train.epochs=1"]
    options = [word for value in own for word in ("-S", value)]
    command = ["python", "-m", "tools.sweep", "--jobs", "1", *options, "-S", "train.seed=3"]
    assert "validation accuracy" in project(*command)
    if kept == "by DVC":
        project("dvc", "exp", "run", "--temp", *options)
    runs = project.runs()
    assert len(runs) == 1 + (kept == "by DVC")
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params["prepare.path"] == str(OWN)
        assert "test/accuracy" in run.data.metrics
    [ref] = project("git", "for-each-ref", "--format=%(refname)", "refs/exps/??/*/sweep*").split()
    assert re.search(rf"path: {OWN}\n(.*\n){{3}} +nfiles: 40\n", project("git", "show", f"{ref}:dvc.lock"))
    assert "sweep" in project(*command), "once more, there is nothing left to run"
    assert len(project.runs()) == len(runs)
    assert "skipped" not in project("python", "-m", "tools.sync", ref.rsplit("/", 1)[1])

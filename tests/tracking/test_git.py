"""Git's answers: one that is empty and one that failed are not taken for each other."""

from pathlib import Path

import pytest

from stages.base.errors import InputError
from stages.tracking.git import GitError, git, git_bytes


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository without any commit."""
    git("init", "-q", str(tmp_path / "repository"))
    return tmp_path / "repository"


def test_an_empty_answer_is_an_answer(repository: Path) -> None:
    assert git("status", "--porcelain", folder=repository) == ""
    assert git_bytes("status", "--porcelain", folder=repository) == b""
    (repository / "new.txt").touch()
    assert git("status", "--porcelain", folder=repository) == "?? new.txt\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rev-parse", "--verify", "HEAD"], "git rev-parse --verify HEAD failed: fatal: "),
        (["rev-parse", "--verify", "--quiet", "HEAD"], r"git rev-parse --verify --quiet HEAD failed: status 1$"),
        (["no-such-command"], "git no-such-command failed: git: 'no-such-command' is not a git command"),
    ],
)
def test_a_failed_answer_is_an_error(repository: Path, arguments: list[str], message: str) -> None:
    for run in (git, git_bytes):
        with pytest.raises(GitError, match=message):
            run(*arguments, folder=repository)


def test_a_folder_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(GitError, match="git status failed: fatal: not a git repository"):
        git("status", folder=tmp_path)
    with pytest.raises(GitError, match=r"git cannot be run: .*No such file or directory: .*absent"):
        git("status", folder=tmp_path / "absent")


def test_a_missing_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(GitError, match=r"git cannot be run: .*No such file or directory: 'git'"):
        git("status", folder=repository)
    assert issubclass(GitError, InputError), "so that it ends in one line"


def test_git_is_given_bytes_and_gives_them_back(repository: Path) -> None:
    content = bytes(range(256))
    blob = git_bytes("hash-object", "-w", "--stdin", folder=repository, stdin=content).decode().strip()
    assert git_bytes("cat-file", "blob", blob, folder=repository) == content

"""Git's answers: the user's settings do not change them, and one that failed is not taken for an empty one."""

import shutil
import stat
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


HOSTILE = """
[color]
    ui = always
    diff = always
    status = always
[core]
    abbrev = 4
    editor = false
    fsmonitor = {program}
    hooksPath = {hooks}
    pager = false
    quotePath = true
[pager]
    log = true
[diff]
    algorithm = patience
    context = 0
    external = {program}
    interHunkContext = 20
    mnemonicPrefix = true
    noprefix = true
    orderFile = {order}
    relative = true
    renames = false
    submodule = log
    suppressBlankEmpty = true
    wsErrorHighlight = all
[diff "text"]
    command = {program}
    textconv = {program}
[clone]
    rejectShallow = true
[format]
    pretty = oneline
[i18n]
    logOutputEncoding = latin1
[log]
    date = relative
    decorate = full
    follow = true
    showSignature = true
[status]
    renames = false
    short = true
    showUntrackedFiles = no
[apply]
    whitespace = error-all
"""


def answers(repository: Path, copy: Path) -> list[bytes]:
    """What git says to all that the project asks it, in the order in which it does."""
    changes = git_bytes("diff", "--binary", "HEAD", folder=repository)
    git("clone", "-q", "--shared", "--no-checkout", ".", str(copy), folder=repository)
    git("checkout", "-q", "--detach", "HEAD", folder=copy)
    git_bytes("apply", folder=copy, stdin=changes)
    (copy / "more").touch()
    git("fetch", "-q", "--no-tags", str(repository), "HEAD:refs/exps/x", folder=copy)
    return [
        changes,
        git_bytes("diff", "HEAD", folder=copy),
        *(
            git_bytes(*words, folder=folder)
            for folder in (repository, copy)
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain"],
                ["log", "-1", "--format=%an%n%ct", "HEAD"],
                ["log", "--full-history", "--topo-order", "--reverse", "--format=%H", "--", "second.txt"],
                ["show", "HEAD:first.txt"],
                ["ls-tree", "HEAD", "caf\u00e9.txt"],
                ["ls-files", "-z", "--others", "--exclude-standard"],
                ["for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"],
            )
        ),
    ]


def test_neither_settings_nor_environment_change_an_answer(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(text: str) -> None:
        (tmp_path / "settings").write_text(f"[user]\n    name = \u00e9\n    email = e@localhost\n{text}")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))

    settings("")
    (repository / ".gitattributes").write_text("*.txt diff=text\n")
    for name, text in {"first": "a \n\nb\nc\n" + 12 * "-\n" + "f\n", "caf\u00e9": "1\n2\n3\n"}.items():
        (repository / f"{name}.txt").write_text(text)
    git("add", "-A", folder=repository)
    git("commit", "-q", "-m", "first", folder=repository)
    shutil.copy(repository / "first.txt", repository / "second.txt")
    git("rm", "-q", "--cached", "first.txt", folder=repository)
    git("add", "second.txt", folder=repository)
    git("commit", "-q", "-m", "renamed", folder=repository)
    git("add", "first.txt", folder=repository)
    git("commit", "-q", "-m", "both", folder=repository)
    (repository / "first.txt").write_text("a \n\nb\nC\n" + 12 * "-\n" + "F\n")
    (repository / "caf\u00e9.txt").write_text("1\n2 \n\n3\n")
    git("mv", "second.txt", "third.txt", folder=repository)
    (repository / "n\u00e9w.txt").touch()
    expected = answers(repository, tmp_path / "copy")
    assert "?? n\u00e9w.txt\n".encode() in expected[3]

    program, hooks = tmp_path / "program", tmp_path / "hooks"
    program.write_text(f"#!/bin/sh\necho evil\ntouch '{tmp_path}/evil'\n")
    program.chmod(0o755)
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction"):
        shutil.copy(program, hooks / name)
    (tmp_path / "order").write_text("first.txt\n")
    settings(HOSTILE.format(program=program, hooks=hooks, order=tmp_path / "order"))
    git("init", "-q", str(tmp_path / "other"))
    environment = {
        "GIT_DIR": str(tmp_path / "other/.git"),
        "GIT_WORK_TREE": str(tmp_path / "other"),
        "GIT_INDEX_FILE": str(tmp_path / "other/index"),
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "other/objects"),
        "GIT_PREFIX": "sub/",
        "GIT_EXTERNAL_DIFF": str(program),
        "GIT_DIFF_OPTS": "-u0",
        "GIT_PAGER_IN_USE": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NAMESPACE": "other",
        "LC_ALL": "de_DE.UTF-8",
        "LANGUAGE": "de",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert answers(repository, tmp_path / "copy again") == expected
    assert not (tmp_path / "evil").exists(), "a program of the user's settings was run"
    assert [path.name for path in (tmp_path / "other").iterdir()] == [".git"], "another repository was changed"


def test_a_repository_of_another_owner_is_no_empty_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What git's own tests set so that it takes the owner for another, as it is in a container's mount.
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin/git"
    other.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"\n')
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    for arguments in (["status", "--porcelain"], ["rev-parse", "HEAD"], ["for-each-ref"], ["ls-files"], ["log"]):
        with pytest.raises(GitError, match=r"dubious ownership in repository at .*\n(?s:.*)--add safe.directory"):
            git(*arguments, folder=repository)
    git("config", "--global", "--add", "safe.directory", str(repository))
    assert git("status", "--porcelain", folder=repository) == ""

"""Two processes that write one output: who may, and what the other is told."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.base import locks
from stages.base.errors import InputError
from stages.base.files import replacing
from stages.base.locks import locked, locked_if_free
from tests.conftest import ROOT, clean_environment

HOLDS = """
import os, sys, time
from pathlib import Path
from stages.base.locks import locked
with locked(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    print("holds", flush=True)
    input()
"""


@contextmanager
def held(output: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Let another process hold the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(output), *arguments],
        cwd=ROOT,
        env=clean_environment() | {"REPRONET_HOME": os.environ["REPRONET_HOME"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRONET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    return tmp_path / "home"


def test_another_process_is_named_and_nothing_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("old")
    with held(tmp_path / "out") as process:
        assert said(process) == "holds"
        (tmp_path / ".out.partial").write_text("half")
        with pytest.raises(InputError) as caught, replacing(tmp_path / "out"):
            pass
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.fullmatch(
            rf"{tmp_path}/out is being written by process {process.pid} \(.*python.* -c .*\) {since}\. Let it end, .*",
            str(caught.value),
        )
        assert capsys.readouterr().err.count(f"being written by process {process.pid} ") == 1
        assert (tmp_path / ".out.partial").read_text() == "half"
        with replacing(tmp_path / "other") as partial:
            partial.touch()
        assert process.poll() is None
    assert (tmp_path / "out").read_text() == "old"


def test_one_that_ends_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 60.0)
    with held(tmp_path / "out") as process:
        assert said(process) == "holds"
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {process.pid}"])
        with locked(tmp_path / "out"):
            assert process.wait(timeout=0.5) == -signal.SIGKILL


def test_what_is_forked_does_not_hold_the_lock_on(tmp_path: Path) -> None:
    with held(tmp_path / "out", "fork") as process:
        lines = {said(process), said(process)}
        [child] = [int(line) for line in lines - {"holds"}]
        try:
            process.kill()
            process.wait()
            with locked(tmp_path / "out"):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_it_can_be_locked_again_inside_and_leaves_nothing(tmp_path: Path, home: Path) -> None:
    with locked(tmp_path / "a", tmp_path / "b"):
        with locked(tmp_path / "b"):
            pass
        assert len(list((home / "locks").iterdir())) == 2
    assert list((home / "locks").iterdir()) == []


def test_one_place_has_one_lock_whatever_leads_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with held(tmp_path / "link/out") as process:
        assert said(process) == "holds"
        # A link in the output's own place, as DVC may put there, is replaced: where it leads is another place.
        (tmp_path / "folder/out").symlink_to(tmp_path / "cached")
        with pytest.raises(InputError, match="being written by"), locked(tmp_path / "folder/../folder/out"):
            pass
        with locked(tmp_path / "cached"):
            pass


def test_whose_lock_was_removed_leaves_the_output_to_others(tmp_path: Path, home: Path) -> None:
    (tmp_path / "out").write_text("old")

    def write() -> None:
        with replacing(tmp_path / "out") as partial:
            partial.write_text("new")
            [lock] = (home / "locks").iterdir()
            lock.unlink()
            lock.touch()  # as another process would

    with pytest.raises(InputError, match="was removed meanwhile"):
        write()
    assert (tmp_path / "out").read_text() == "old"
    assert len(list((home / "locks").iterdir())) == 1
    assert not (tmp_path / ".out.partial").exists()


def test_where_the_project_is_read_only_the_lock_is_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRONET_HOME", "/sys/none")  # not even root can write there
    with held(tmp_path / "new/out") as process:
        assert said(process) == "holds"
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".out.lock.partial"]
        with pytest.raises(InputError, match="being written by"), locked(tmp_path / "new/out"):
            pass
        process.kill()
        process.wait()
        with replacing(tmp_path / "new/out") as partial:
            partial.touch()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    message = r"/sys/none/out cannot be written, nor its lock: .*: /sys/none/\.out\.lock"
    with pytest.raises(InputError, match=message), locked(Path("/sys/none/out")):
        pass


def test_what_is_not_free_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    with held(output) as process:
        assert said(process) == "holds"
        with locked_if_free(output) as is_free:
            assert not is_free
    with locked_if_free(output) as is_free:
        assert is_free
        with locked_if_free(output) as once_more:
            assert not once_more
    with locked(output):
        pass
    assert capsys.readouterr().err == ""

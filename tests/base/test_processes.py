"""What signals do to a process of ours, and what its environment passes on to git."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stages.base.processes import STOPPING, thread_count, without_git_redirects
from tests.conftest import ROOT, clean_environment

WAITING = """
import time
from stages.base import cli
def main():
    print("waits", flush=True)
    time.sleep(60)
cli.run(main)
"""


def started(*before: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*before, sys.executable, "-c", WAITING],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    return process


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_interrupts(number: signal.Signals) -> None:
    process = started()
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("before", "number"), [(["nohup"], signal.SIGHUP), (["sh", "-c", 'trap "" INT; exec "$@"', "sh"], signal.SIGINT)]
)
def test_what_was_ignored_at_the_start_stays_ignored(before: list[str], number: signal.Signals) -> None:
    process = started(*before)
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    assert process.communicate(timeout=20)[1].splitlines()[-1] == "interrupted"
    assert process.returncode == 130


def test_of_git_s_variables_those_stay_that_lead_to_no_other_repository() -> None:
    # All that git itself says to be of one repository, and others that git sets for hooks or that change its answers.
    listed = subprocess.check_output(["git", "rev-parse", "--local-env-vars"], text=True).split()
    redirects = {name for name in listed if not name.startswith("GIT_CONFIG_")} | {"GIT_EXTERNAL_DIFF", "GIT_NAMESPACE"}
    settings = {"GIT_AUTHOR_NAME", "GIT_CONFIG_COUNT", "GIT_CONFIG_GLOBAL", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "PATH"}
    assert {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"} <= redirects
    assert without_git_redirects(dict.fromkeys(redirects | settings, "x")).keys() == settings


def test_what_a_tool_starts_sees_the_repository_that_it_is_in(tmp_path: Path) -> None:
    code = (
        "import subprocess; from stages.base import cli; cli.run(lambda: subprocess.run(['git', 'rev-parse', 'HEAD']))"
    )
    expected = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, env=clean_environment())
    environment = clean_environment() | {"GIT_DIR": str(tmp_path), "GIT_INDEX_FILE": str(tmp_path / "index")}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment) == expected


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("threads", [0, 1])
def test_signals_are_held_back_whatever_threads_there_are(number: signal.Signals, threads: int) -> None:
    code = f"""
import os, signal, threading, time
from stages.base.processes import STOPPING, interrupt_on_signals, signals_held
for _ in range({threads}):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
interrupt_on_signals()
def now():
    return signal.pthread_sigmask(signal.SIG_BLOCK, []), [signal.getsignal(number) for number in STOPPING]
before = now()
with signals_held():
    pass
assert now() == before
try:
    with signals_held():
        os.kill(os.getpid(), {number:d})
        for _ in range(100_000):
            pass
        print("held")
except KeyboardInterrupt:
    print("interrupted")
"""
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), text=True)
    assert printed == "held\ninterrupted\n"


def test_auto_threads_are_the_physical_cores_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count(3) == 3
    for physical, usable, expected in [(4, 8, 4), (4, 2, 2), (None, 2, 2)]:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical, count=physical: None if logical else count)
        monkeypatch.setattr("stages.base.processes.cores", lambda count=usable: count)
        assert thread_count("auto") == expected


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize(
    ("environment", "spins"),
    [
        ({}, "3000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
    ],
)
def test_threads_of_a_stage_soon_wait_without_a_core_unless_the_environment_says_otherwise(
    stage: str, environment: dict[str, str], spins: str
) -> None:
    # What OpenMP itself says when torch brings it; where nothing has been set, it spins 300,000 times.
    shown = subprocess.run(
        [sys.executable, "-c", f"import stages.{stage}, torch"],
        cwd=ROOT,
        env={name: value for name, value in clean_environment().items() if not name.endswith(("_POLICY", "_SPINCOUNT"))}
        | {"OMP_DISPLAY_ENV": "verbose", "OMP_DYNAMIC": "TRUE", **environment},
        capture_output=True,
        check=True,
        text=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
    assert "OMP_DYNAMIC = 'FALSE'" in shown

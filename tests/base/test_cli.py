"""How a command ends: as any program of Python does, but without freeing its libraries."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, clean_environment

SCRIPT = """
import atexit, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from stages.base import cli
from stages.base.errors import InputError

class Library:
    def __del__(self):
        print("freed")

library, pool = Library(), ThreadPoolExecutor()

def main():
    print("main")
    atexit.register(print, "atexit")
    pool.submit(lambda: (time.sleep(0.1), print("executor")))
    threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
    {ending}

cli.run(main)
"""
ENDINGS = {
    "pass": (0, ""),
    "raise InputError('x: 3')": (1, "error: x: 3"),
    "raise KeyboardInterrupt": (130, "interrupted"),
    "open('/dev/full', 'w', buffering=1).write('.' * 10**5)": (1, "error: a file: No space left on device"),
}


def run(ending: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", SCRIPT.replace("{ending}", ending)]
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("ending", ENDINGS)
def test_threads_and_what_is_registered_come_to_their_end(ending: str) -> None:
    ended = run(ending)
    assert ended.stdout.splitlines() == ["main", "executor", "thread", "atexit"]
    assert (ended.returncode, ended.stderr.strip()) == ENDINGS[ending]


def test_ctrl_c_at_the_end_ends_the_waiting_and_not_what_is_done() -> None:
    ended = run("threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "atexit"


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("raise ValueError", 1), ("sys.stdout.close()", 0)])
def test_an_end_of_another_kind_is_python_s(ending: str, code: int) -> None:
    assert run(ending).returncode == code


def test_output_that_nobody_reads() -> None:
    script = SCRIPT.replace("{ending}", "pass")
    piped = f"set -o pipefail; {sys.executable} -c '{script}' | true"
    ended = subprocess.run(["bash", "-c", piped], cwd=ROOT, env=clean_environment(), text=True, capture_output=True)
    assert ended.returncode == 120, "what Python exits with"
    assert "BrokenPipeError" in ended.stderr

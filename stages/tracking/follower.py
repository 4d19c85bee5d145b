"""The stage's side of the process that brings its journal to MLflow."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

from stages.base.dvc import STAGE
from stages.base.processes import signals_held
from stages.base.text import warn
from stages.tracking.store import Store

IDLE_SECONDS = 5.0  # how long it is waited for without a sign of work; a server that works takes less for an answer
LOCKED_SECONDS = 60.0  # likewise for a file, where others may be at work: SQLite itself says when that takes too long
WORK_SECONDS = 0.02  # of processor time: such a sign; to wait for an answer takes none
LONGEST_SECONDS = 120.0  # that it is waited for in all
ROOT = Path(__file__).parents[2]


class Follower:
    """Follows a journal to a store. It warns once of what goes wrong, and holds nothing up for long."""

    def __init__(self, store: Store, folder: Path, environment: Mapping[str, str], is_evaluation: bool = False) -> None:
        self._store, self._has_warned = store, False
        arguments = [str(folder), *["--evaluation"] * is_evaluation]
        own = {"MLFLOW_TRACKING_URI": store.uri, "CUDA_VISIBLE_DEVICES": ""}  # no GPU is used
        env = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | os.environ | dict(environment) | own
        env.pop(STAGE, "")  # what it writes is no output: it may go on where the DVC that ran the stage has ended
        with signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stages", "tracking.deliver", *arguments],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # who kills the stage with its group lets this bring what the journal has
            )
        self._number = 0  # of the process that works
        self._listening = Thread(target=self._listen, name="listens to MLflow", daemon=True)
        self._listening.start()
        atexit.register(self.abandon)  # of a stage that fails before it has anything to log

    def finish(self) -> None:
        """Wait for the rest of the journal, which has its end now, to arrive, but not for a store that hangs.

        Ctrl-C ends the waiting, and nothing else: all is done but this.
        """
        assert self._process.stdin is not None
        try:
            with suppress(OSError):  # it has ended
                # Its end alone would not be seen while processes that were forked have it open.
                self._process.stdin.write(b"\n")
                self._process.stdin.close()
            self._wait()
        except KeyboardInterrupt:
            self._warn("it was not waited for")
        finally:
            self.abandon()
            atexit.unregister(self.abandon)
        self._listening.join(1)  # to what it has said at last
        if self._process.returncode != 0:
            crashed = self._process.returncode not in (1, -signal.SIGKILL, None)
            self._warn(f"its process ended with {self._process.returncode}" if crashed else "it does not answer")

    def abandon(self) -> None:
        """End the process, whatever it has done."""
        with suppress(ProcessLookupError):
            if self._number and self._process.poll() is None:
                os.kill(self._number, signal.SIGKILL)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # the disk that it writes to may hang
            self._process.wait(2)

    def _wait(self) -> None:
        """Wait for the process until it ends, or does nothing."""
        idle = LOCKED_SECONDS if self._store.database else IDLE_SECONDS
        worked = 0.0
        since = last = time.monotonic()
        while self._process.poll() is None and time.monotonic() - since < LONGEST_SECONDS:
            now = worked
            with suppress(psutil.Error):  # it has just ended
                now = sum(psutil.Process(self._number).cpu_times()[:2]) if self._number else 0.0
            if now > worked + WORK_SECONDS or not self._number:  # without one it has not begun
                worked, last = now, time.monotonic()
            elif time.monotonic() - last > idle:
                return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError, LookupError, TypeError):  # not ours
                said = json.loads(line)
                if "process" in said:
                    self._number = int(said["process"])
                else:
                    self._warn(said["failed"])

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"warning: MLflow at {self._store.name} failed, so this run may be missing or incomplete there; the"
                f" results are not affected, and python -m tools.sync brings them there once it is back. {why}"
            )

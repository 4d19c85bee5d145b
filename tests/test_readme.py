"""Every command of the README, run as it stands there, in its order, in a copy of the project."""

import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project

README = (ROOT / "README.md").read_text()
COMMANDS = [
    command
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if (command := line.split("  #")[0].strip())
]
IN_CI = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]


@pytest.fixture(scope="module")
def copy(make_project: Callable[[], Project]) -> Project:
    project = make_project()
    (project.root / ".venv").symlink_to(sys.prefix)  # this environment, for make and for activation
    return project


def test_there_is_something_to_run() -> None:
    assert {"make repro", "make test", "make ui"} <= set(COMMANDS)
    assert {"make repro", "make test", "make soak", "make check"} == set(IN_CI), (
        "CI runs these, where nothing is installed yet"
    )
    assert not re.search(r"\b[A-Z]+_[A-Z]+\b minutes", README)
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command not in [*IN_CI, "make ui", "make serve"]]
)
def test_command(copy: Project, command: str) -> None:
    # `make` would not find the environment up to date, since the copy's files are newer than it.
    copy("bash", "-ec", command.replace("make ", "make -o .venv/installed "))
    if command.startswith("dvc exp run"):
        run = copy.runs()[0]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == run.data.tags["dvc.exp_name"]
        assert run.data.tags["dvc.baseline_rev"] == copy("git", "rev-parse", "HEAD").strip()
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(copy.root / "mlartifacts")
        assert (".dvc/tmp/exps" in run.data.tags["directory"]) == ("--temp" in command)
        assert run.data.metrics["test/accuracy"] >= (0.90 if "fashion_mnist" in command else 0.96)
        assert run.data.metrics["test/never_predicted"] == 0
        for key, value in re.findall(r"-S \+?(\S+)=(\S+)", command):
            assert run.data.params[key] == value


def test_make_ui_serves_the_runs_on_this_machine_only(copy: Project) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = copy.start("make", "-o", ".venv/installed", "ui", f"PORT={port}")
    try:
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.2)
        assert "<title>MLflow</title>" in urllib.request.urlopen(address).read().decode()
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        output, _ = server.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning" in output

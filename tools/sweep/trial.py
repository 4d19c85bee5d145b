"""An experiment on a node of a cluster, in a clone of its own; tools/sweep/node.py starts it there.

    python -m tools.sweep.trial FOLDER SCRATCH NAME [KEY=VALUE ...]

runs it as `dvc exp run` does, brings its data to DVC's remote and then its commit to git's: where both are, all is. It
prints lines of JSON: {"epochs": [[epoch, validation accuracy], ...]} as it goes on, and in the end {"commit": ...} or
{"reason": why there is none}; with the commit {"left": what MLflow has not got}. What DVC and the stages print goes to
a file in FOLDER.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from stages.base import cli
from stages.base.errors import InputError
from stages.base.experiment import home
from stages.base.text import say
from stages.tracking.git import GitError, git
from stages.tracking.journal import journals
from stages.tracking.store import Store
from tools.sweep.copies import DVC, dvc
from tools.sweep.experiments import prepared
from tools.sweep.local import data_are_prepared, end_groups, left_running, reason_of_failure
from tools.sweep.node import LOG, end_with_parent
from tools.sync import Sync

POLL_SECONDS = 0.5


def main() -> None:
    folder, scratch, name, *overrides = sys.argv[1:]
    try:
        say(json.dumps(trial(Path(folder) / LOG, Path(scratch), name, overrides)))
    except InputError as error:
        say(json.dumps({"reason": str(error)}))


def trial(log: Path, scratch: Path, name: str, overrides: Sequence[str]) -> dict[str, str]:
    """Run the experiment; return {"commit": ...} or {"reason": ...}. Raises InputError if a remote fails."""
    code = run(log, scratch, name, overrides)
    output = log.read_text(encoding="utf-8", errors="replace")
    ref = git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{name}").split()
    if not ref:
        return {"reason": reason_of_failure(output) or f"dvc exited with {code}"}
    dvc("push")  # the files first; `dvc exp push` sends the commit before them
    commit, left = sent(*ref), journals_left()
    if not left:
        return {"commit": commit}
    own = home(os.environ)
    return {"commit": commit, "left": f"on {socket.gethostname()}: REPRONET_HOME={own} python -m tools.sync; {left}"}


def run(log: Path, scratch: Path, name: str, overrides: Sequence[str]) -> int:
    """Run it, with reports, until it has ended or this process is told to end. Return DVC's status."""
    command = [*DVC, "exp", "run", "--pull", "--name", name, *(f"--set-param={text}" for text in overrides)]
    reported: list[tuple[int, float]] = []
    with ExitStack() as until_prepared:
        # Of those on a node that share prepared data, one makes it, and the others take it from the node's cache.
        key = hashlib.sha256(json.dumps([git("rev-parse", "HEAD"), prepared(overrides)]).encode()).hexdigest()
        until_prepared.enter_context(FileLock(scratch / f"prepare-{key[:16]}.lock"))
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
                start_new_session=True,
            )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if data_are_prepared(log.read_text(encoding="utf-8", errors="replace")):
                    until_prepared.close()
                if (found := epochs()) and found != reported:
                    say(json.dumps({"epochs": found}))
                    reported = found
        finally:
            end_groups({process.pid} | left_running(Path.cwd()))
    return process.wait()


def epochs() -> list[tuple[int, float]]:
    """Return each epoch so far of the training that goes on here, and its validation accuracy."""
    for _, events in [*journals(os.environ)][-1:]:
        points = [event for event in events if event["kind"] == "points" and "valid/accuracy" in event["metrics"]]
        return [(event["step"], event["metrics"]["valid/accuracy"]) for event in points]
    return []


def journals_left() -> str:
    """Bring MLflow what it has not got of this experiment; return why some is left, "" if none is."""
    said: list[str] = []
    with suppress(InputError):  # the store is away, and the journals stay
        if any(True for _ in journals(os.environ)):
            said += (f"{outcome}{detail}" for _, outcome, detail in Sync(Store.from_environment(), False).journals())
    return ", ".join(said) or "MLflow is away" if any(True for _ in journals(os.environ)) else ""


def sent(ref: str, commit: str) -> str:
    """Send an experiment's commit to git's remote; return what that has then: another attempt may have been first."""
    try:
        git("push", "-q", "origin", f"{commit}:{ref}")
    except GitError:
        if not (there := git("ls-remote", "origin", ref).split("\t")[0].strip()):
            raise
        return there
    return commit


if __name__ == "__main__":
    cli.run(main)

"""DVC's experiments as processes of their own, each in a copy of the repository that nobody else works in.

`dvc exp run --temp` makes such copies, too, but puts the user's uncommitted changes aside for a moment whenever it
starts. Where it is killed in that moment, they stay aside, and git stays locked. Here whatever is killed, wherever, is
lost with its copy, and an experiment sees the code as it was when the sweep began, whatever is edited meanwhile.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import psutil

from stages.base.errors import InputError
from stages.base.params import Params, load_params
from stages.train import score
from tools import recorded

GRACE_SECONDS = 20.0  # what an interrupted experiment has to close its run


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to."""

    valid_accuracy: float  # of the epoch that was kept
    valid_loss: float
    test_accuracy: float

    def __str__(self) -> str:
        return f"validation accuracy {self.valid_accuracy:.4f}, test accuracy {self.test_accuracy:.4f}"


@dataclass
class Experiment:
    """One experiment of DVC, and how far it is."""

    name: str
    number: int  # of its configuration: those of one number differ in their seed alone
    values: dict[str, str]  # what tells configurations apart
    overrides: list[str]
    state: str = "waiting"  # waiting | running | done | failed | pruned
    attempts: int = 0
    started: float = 0.0  # seconds, of time.monotonic
    seconds: float = 0.0  # that it took, where it was run now
    outcome: Outcome | None = None
    reason: str = ""
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def prepared(self) -> tuple[str, ...]:
        """What of the overrides the prepare stage sees: experiments that agree in it share the prepared data."""
        return tuple(override for override in self.overrides if override.lstrip("+").startswith("prepare."))


def run_git(*arguments: str) -> str:
    """Return what git prints. Raises CalledProcessError where it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, check=True, text=True).stdout


def copy_repository(folder: Path, commit: str, changes: bytes) -> None:
    """Make `folder` a copy of the repository at `commit` with the patch `changes`, and with the same DVC cache.

    Of files that git does not track it gets those of data/raw and data/weights, which the user brought: as hard links,
    since symbolic ones would lead out of the data's folder. The user's own symbolic links stay as they are. Raises
    InputError where git does not know who the user is.
    """
    shutil.rmtree(folder, ignore_errors=True)
    run_git("clone", "-q", "--shared", "--no-checkout", ".", str(folder))
    run_git("-C", str(folder), "checkout", "-q", "--detach", commit)
    if changes:
        apply = ["git", "-C", str(folder), "apply", "--whitespace=nowarn"]
        subprocess.run(apply, input=changes, capture_output=True, check=True)
    for name in untracked("data/raw", "data/weights"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(name, folder / name, follow_symlinks=False)
        except (OSError, NotImplementedError):  # on another file system, or one without links to links
            shutil.copy(name, folder / name, follow_symlinks=False)
    for key in ("user.name", "user.email"):  # they may stand in this clone's own settings
        try:
            run_git("-C", str(folder), "config", key, run_git("config", key).strip())
        except subprocess.CalledProcessError as error:
            raise InputError(f"DVC commits experiments, and git has no {key}: git config --global {key} …") from error
    local = Path(".dvc/config.local")
    if local.exists():
        shutil.copy(local, folder / local)
    cache = subprocess.run([*_dvc(), "cache", "dir"], capture_output=True, check=True, text=True).stdout.strip()
    subprocess.run([*_dvc(), "cache", "dir", "--local", str(Path(cache).resolve())], cwd=folder, check=True)


def untracked(*paths: str) -> list[str]:
    """Return the files that git neither tracks nor ignores."""
    return [
        name for name in run_git("ls-files", "-z", "--others", "--exclude-standard", "--", *paths).split("\0") if name
    ]


def _dvc() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def start(
    name: str, overrides: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the experiment `name` in the copy `folder`; it writes what it prints into `log`."""
    # A stage calls plain `python`, which has to be this one, whether or not its environment is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        return subprocess.Popen(
            [*_dvc(), "exp", "run", "--name", name, *(f"--set-param={override}" for override in overrides)],
            cwd=folder,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the sweep, which ends its experiments itself
        )


def stop(groups: Collection[int]) -> None:
    """End process groups: with time for a stage to close its run, then for good."""
    # Not SIGINT, which is ignored by all that a shell has started in the background.
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(_group(process) in groups for process in _living()) and time.monotonic() < deadline:
            time.sleep(0.1)


def left_running(folder: Path) -> set[int]:
    """Return the process groups that work in the copies under `folder`, left behind by a sweep that was killed."""
    groups = set()
    for process in _living():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                groups.add(_group(process))
    return groups - {os.getpgrp(), -1}


def _living() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return -1


def collect(name: str, baseline: str, folder: Path) -> str | None:
    """Bring the experiment `name` from the copy `folder`, and return its commit; None if it is not there.

    Raises InputError if there is another experiment of that name here.
    """
    ref = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"
    try:
        commit = run_git("-C", str(folder), "rev-parse", "--quiet", "--verify", ref).strip()
    except subprocess.CalledProcessError:
        return None
    with contextlib.suppress(subprocess.CalledProcessError):
        run_git("fetch", "-q", "--no-tags", str(folder), f"{ref}:{ref}")
    if revisions(baseline).get(name) != commit:
        raise InputError(f"there is another experiment {name} already; dvc exp remove {name}, or take another --name")
    return commit


def same_code(revision: str, folder: Path) -> bool:
    """Return whether an experiment's commit has the code of the copy `folder`."""
    others = (":(exclude)params.yaml", ":(exclude)dvc.lock", ":(exclude)metrics")
    compared = subprocess.run(["git", "-C", str(folder), "diff", "--quiet", revision, "--", ".", *others], check=False)
    return compared.returncode == 0


def revisions(baseline: str) -> dict[str, str]:
    """Return the commit of each experiment of the commit `baseline`, by its name."""
    return {found.name: found.commit for found in recorded.experiments() if found.baseline == baseline}


def params_of(revision: str) -> Params:
    """Return the params of an experiment's commit. Raises InputError if they are not such as today's."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(run_git("show", f"{revision}:params.yaml"), encoding="utf-8")
        return load_params(file)


def outcome(revision: str) -> Outcome:
    """Return what stands in the metrics files of an experiment's commit."""
    history = pd.read_csv(StringIO(run_git("show", f"{revision}:metrics/train.csv")))
    best = max(({str(name): value for name, value in row.items()} for row in history.to_dict("records")), key=score)
    results = json.loads(run_git("show", f"{revision}:metrics/evaluate.json"))
    return Outcome(best["valid/accuracy"], best["valid/loss"], results["accuracy"])

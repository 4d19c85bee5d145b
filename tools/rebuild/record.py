"""What a run in MLflow says of itself."""

import json
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.base.errors import InputError, listed
from stages.base.params import RANDOM, WEIGHTS
from stages.base.text import say
from stages.tracking import environment
from stages.tracking.result import PATCH, TIDIED_TAG
from tools.dvclock import as_yaml, read_params
from tools.runs import EvaluatedRun, Runs


class Record:
    """What a run in MLflow says of itself; its artifacts are copied into `folder`."""

    def __init__(self, store: Runs, run: EvaluatedRun, folder: Path) -> None:
        """Raises InputError, which says what is missing."""
        folder.mkdir()
        self.run, self.folder, self._store = run, folder, store
        self.commit = run.tags.get("mlflow.source.git.commit", "")
        if not self.commit:
            raise InputError("it was logged without a commit: there was no git")
        if untracked := run.tags.get("git.untracked"):
            raise InputError(f"it had files that neither its commit nor its patch holds: {untracked}")
        self.patch = self.artifact(PATCH).read_bytes() if run.patch else b""
        self.params = read_params(self.artifact("params.yaml"))
        self.lock = as_yaml(self.artifact("dvc.lock").read_bytes())
        self.environment: dict[str, Any] = {}
        with suppress(InputError):  # of an earlier version
            self.environment = json.loads(self.artifact(environment.ARTIFACT).read_bytes())

    def artifact(self, name: str) -> Path:
        """Return a copy of one of the run's artifacts. Raises InputError if it has none of this name."""
        if (path := self._store.artifact(self.run, name, self.folder)) is None:
            raise InputError(f"it has no {name}")
        return path

    @property
    def is_tidied(self) -> bool:
        """Whether tools.tidy has removed its weights and its model."""
        return TIDIED_TAG in self.run.tags

    def inputs(self, stages: Collection[str]) -> list[Path]:
        """Return the data of the user, and the weights, that these stages read; earlier versions had fewer."""
        paths = [self.params.get(name) for name in ("prepare.path", "prepare.exclude") if "prepare" in stages]
        return [*(Path(path) for path in paths if path), WEIGHTS / (self.params.get("train.init_from") or RANDOM)]

    def curve(self, metric: str) -> dict[int, float]:
        return self._store.curve(self.run, metric)

    def other_packages(self) -> str:
        """Return which of the installed packages are not those of the run."""
        recorded, now = self.environment.get("packages", {}), environment.packages()
        names = [name for name in recorded if recorded[name] != now.get(name) and name != "repronet"]
        return listed(f"{name} {recorded[name]} (now {now.get(name, 'none')})" for name in names)

    def venv(self, folder: Path) -> Path:
        """Make an environment of the run's packages, and return its Python. Raises InputError."""
        if not (packages := self.environment.get("packages")):
            raise InputError("it does not say which packages it was made with")
        wanted = [f"{name}=={version}" for name, version in packages.items() if name not in ("pip", "repronet")]
        python = folder / "bin/python"
        say(f"  installing the {len(wanted)} packages that it was made with")
        uv = [sys.executable, "-m", "uv", "pip", "install", "--system-certs", "--python", str(python)]
        pip = [str(python), "-m", "pip", "install"]
        try:
            _run(sys.executable, "-m", "venv", str(folder))
            try:
                _run(*uv, "--quiet", "--no-deps", *wanted)
            except subprocess.CalledProcessError:  # there is no uv here, or it does not find the packages
                _run(*pip, "--quiet", "--no-deps", *wanted)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().rpartition("\n")[2]
            raise InputError(f"its packages cannot be installed: {reason}") from error
        return python


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)

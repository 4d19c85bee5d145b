"""What the tests share: params, a prepared set, a real MLflow store, and copies of the project that may be broken."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.base.params import Params
from stages.evaluate import evaluate
from stages.prepare import prepare
from stages.tracking.follower import Follower
from stages.tracking.replay import delivered
from stages.tracking.store import Store
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.scheduling import Scheduling

# Where a shell has started the tests in the background, Ctrl-C is ignored by them, and would be by what they start; a
# closed terminal is under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parents[1]
YAML_READER = YAML(typ="safe", pure=True)


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Let `--dist loadscope` work as scheduling.py says."""
    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


def params_with(changes: dict[str, Any]) -> Params:
    """Return the params of params.yaml with some values changed: {dotted name: value}."""
    values = YAML_READER.load((ROOT / "params.yaml").read_text())
    values["train"]["device"] = "cpu"  # where figures and bits can be foretold
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    return Params.model_validate(values)


def write_image(path: Path, seed: int, side: int = 8, mode: str = "L", **options: Any) -> None:
    """Write an image of random pixels that follow from `seed`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path, **options)


class FollowerHere(Follower):
    """What brings a journal to MLflow in this process, at its end: a process for each of hundreds takes minutes.

    The commands that tests run have those processes.
    """

    def __init__(self, store: Store, folder: Path, environment: Mapping[str, str], **_: bool) -> None:
        self._store, self._folder, self._environment, self._has_warned = store, folder, environment, False

    def finish(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            try:
                self._store.client()
                delivered(self._store, self._folder)
            except Exception as error:
                self._warn(self._store.why(error))

    def abandon(self) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def _follower_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.tracking.tracker.Follower", FollowerHere)
        yield


@pytest.fixture(autouse=True)
def no_store() -> Iterator[None]:
    """Undo what MLflow does: it writes the store that it was used with into the environment."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that prepare makes of the embedded digits."""
    folder = tmp_path_factory.mktemp("digits") / "prepared"
    prepare(params_with({}).prepare, folder)
    return folder


def keep_training(prepared: Path, n: int) -> None:
    """Leave in a prepared set its first n training images, and those of validation."""
    manifest = pd.read_csv(prepared / "manifest.csv", dtype=str)
    training = manifest[manifest["split"] == "train"].iloc[:n]
    pd.concat([training, manifest[manifest["split"] == "valid"]]).to_csv(prepared / "manifest.csv", index=False)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 60 coloured images of three classes, one of which has the name of a column."""
    folder = tmp_path_factory.mktemp("colours")
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 60, (60, 3, 32, 32))
    images = (noise + 150 * np.eye(3, dtype=int)[labels][:, :, None, None]).astype(np.uint8)
    np.save(folder / "images.npy", images)
    splits = np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    manifest = pd.DataFrame({"index": range(60), "split": splits, "label": labels})
    manifest.to_csv(folder / "manifest.csv", index=False)
    info = {
        "source": "colours",
        "classes": ["red", "label", "blue"],
        "channels": 3,
        "image_size": 32,
        "mean": [0.3, 0.3, 0.3],
        "std": [0.25, 0.25, 0.25],
        "sizes": {name: int((splits == name).sum()) for name in ("train", "valid", "test")},
        "sha256": dict.fromkeys(("train", "valid", "test"), "0" * 64),
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


class Project:
    """A copy of the project in a git repository of its own, with commands run as a user would run them."""

    limit = 300  # seconds that a command may take

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
            env=clean_environment(),
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():  # a deleted file is still listed
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        self("git", "init", "-q")
        self("git", "config", "user.name", "test")
        self("git", "config", "user.email", "test@localhost")
        self("git", "add", "-A")
        self("git", "commit", "-q", "-m", "copy")

    @classmethod
    def at(cls, root: Path) -> "Project":
        """Return what is there already, such as a clone."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        return self._start(command, environment, subprocess.PIPE)

    def _start(
        self, command: tuple[str, ...], environment: dict[str, str], output: IO[str] | int
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, to be ended with all that it starts
        )

    def __call__(self, *command: str, fails: bool = False, **environment: str) -> str:
        """Run a command and return what it prints, both streams; it must end with 0, or with another if it `fails`.

        It is the command that is waited for: a worker of DVC's queue has the command's output open, too, and one of two
        workers that start at once may never be told to end (kombu lists them in a file, each overwriting the other's).
        """
        # Opened twice, for a place of our own in the file: a worker may go on writing to it.
        with tempfile.NamedTemporaryFile("a") as printed, open(printed.name) as read:  # noqa: PTH123
            process = self._start(command, environment, printed)
            try:
                process.wait(timeout=self.limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pytest.fail(f"{' '.join(command)} has not ended after {self.limit} s:\n{read.read()}")
            output = read.read()
        assert (process.returncode != 0) == fails, f"{' '.join(command)} exited with {process.returncode}:\n{output}"
        return output

    def end_workers(self) -> None:
        """End the workers of DVC's queue, which would wait 10 s for another experiment, or for ever."""
        for process in psutil.process_iter(["cwd", "cmdline"]):
            if process.info["cwd"] == str(self.root) and "queue-worker" in (process.info["cmdline"] or []):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    process.wait(timeout=60)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        (self.root / name).write_text(text.replace(old, new))

    def runs(self) -> list[Any]:
        """The runs in this copy's own store, the latest first."""
        return runs(f"sqlite:///{self.root}/mlflow.db")


def runs(uri: str) -> list[Any]:
    """The runs of the project's experiment, the latest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("repronet")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def clean_environment() -> dict[str, str]:
    """This process's environment, its `python` first, without what would redirect git, DVC, MLflow, make or Python."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC_", "MLFLOW_", "GIT_", "PYTHON", "PYTEST", "MAKE", "MFLAGS"))
    }
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        # As deployed (docs/server.md): else a server starts eight more processes, for jobs of its tools for language
        # models; they take 20 s of CPU and 1.5 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    return lambda: Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def compared(digits: Path, make_project: Callable[[], Project]) -> Project:
    """A copy of the project whose store has four evaluated runs; one was tested on images of another digest."""
    project = make_project()
    other = shutil.copytree(digits, project.root / "other")
    info = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(info.replace('"test": "', '"test": "0'))
    trainings: list[tuple[str, Path, dict[str, Any]]] = [
        ("others", other, {}),
        ("closed", digits, {"train.net.arguments.Net.bias_start": None}),
        ("seed-0", digits, {}),
        ("seed-1", digits, {"train.seed": 1}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, prepared, changes in trainings:
            params = params_with(changes)
            folder = project.root / name
            environment = {"DVC_ROOT": str(project.root), "DVC_EXP_NAME": name}
            weights, history = folder / "net", folder / "train.csv"
            train(params.train, prepared, weights, history, Tracker.from_environment(params, environment))
            tracker = Tracker.from_environment(params, environment)
            evaluate(params, weights, prepared, history, folder / "evaluate.json", folder / "plots", tracker)
    return project


@contextmanager
def served(project: Project, *command: str, port: int, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a server in the project, wait until it listens on `port` of 127.0.0.1, and end it with all it started."""
    server = project.start(*command, **environment)
    try:
        wait_for(port, server)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=60)


def wait_until(
    condition: Callable[[], object], seconds: float = 30, process: "subprocess.Popen[str] | None" = None
) -> None:
    """Return once the condition holds; fail after so many seconds, or when the process has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process and process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(port: int, server: "subprocess.Popen[Any]") -> None:
    """Return when a server listens on this port of 127.0.0.1."""
    deadline = time.monotonic() + 90
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert server.poll() is None, server.communicate()[0]
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.1)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

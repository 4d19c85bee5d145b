"""The team's server of deploy/: what its compose file says, and its parts at work, by the commands that it gives.

No container runs here. The database is Debian's PostgreSQL, the store is moto, which speaks as S3 does, and MLflow
comes from the steps of deploy/Dockerfile. What compose.yaml says of them is what they are started with, but for ports,
which are free ones, and hosts, which are all localhost.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from stages.tracking.result import WEIGHTS_TAG
from tests.conftest import ROOT, YAML_READER, Project, clean_environment, free_port, runs, wait_for
from tests.servers import Database, postgresql, s3, s3_client
from tests.test_container import Image, carried_out, ignored, steps

FOLDER = ROOT / "deploy"
COMPOSE: dict[str, Any] = YAML_READER.load((FOLDER / "compose.yaml").read_text())
SECRETS = {"POSTGRES_PASSWORD": token_hex(), "S3_SECRET_KEY": token_hex()}
HOST = "mlflow.example.org"  # by which others call it
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\})")


def value_of(found: re.Match[str], environment: Mapping[str, str]) -> str:
    """Return what stands for a variable. Raises KeyError, with what the file says, for one that has to be set."""
    if found[0] == "$$":
        return "$"
    if value := environment.get(found["name"]):
        return value
    assert found["operator"], f"{found['name']} would be an empty text, and compose would only warn"
    if found["operator"] == ":?":
        raise KeyError(found["rest"])
    return found["rest"]


def filled(part: Any, environment: Mapping[str, str]) -> Any:
    """Put variables into a part of a compose file, as compose does."""
    match part:
        case dict():
            return {name: filled(value, environment) for name, value in part.items()}
        case list():
            return [filled(value, environment) for value in part]
        case str():
            return VARIABLE.sub(lambda found: value_of(found, environment), part)
        case _:
            return part


def services(**environment: str) -> dict[str, Any]:
    """Return the services as they are with these variables."""
    return dict(filled(COMPOSE, SECRETS | environment)["services"])


def given(name: str) -> str:
    """The password that is set by this name, which stands in no file."""
    return SECRETS[name]


def test_each_part_says_whether_it_works_and_comes_back() -> None:
    assert list(services()) == ["mlflow", "database", "store"]
    for name, service in services().items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["healthcheck"].keys() == {"test", "interval", "timeout", "retries", "start_period"}
        assert service["restart"] == "unless-stopped"
    healthy = {"condition": "service_healthy"}
    assert services()["mlflow"]["depends_on"] == {"database": healthy, "store": healthy}


def test_only_mlflow_is_published_and_to_this_machine_alone() -> None:
    published = {name: service.get("ports", []) for name, service in services().items()}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "database": [], "store": []}
    assert services(REPRONET_BIND="10.0.0.1", REPRONET_PORT="80")["mlflow"]["ports"] == ["10.0.0.1:80:5000"]
    assert not [service for service in services().values() if "network_mode" in service or "privileged" in service]


def test_no_password_stands_in_a_file() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{\w+:\?set it in deploy/\.env, [^}]+\}", value), name
    # They get to processes by the environment, which no list of processes shows, and into no image.
    for service in services().values():
        rest = json.dumps({name: value for name, value in service.items() if name != "environment"})
        assert not [secret for secret in SECRETS.values() if secret in rest]
        addresses = [value for name, value in service["environment"].items() if not re.search("PASSWORD|SECRET", name)]
        assert not [secret for secret in SECRETS.values() if secret in " ".join(addresses)]
    assert not [rest for _, rest in steps(FOLDER / "Dockerfile") if re.search("PASSWORD|SECRET|TOKEN", rest)]
    example = (FOLDER / ".env.example").read_text()
    assert re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE) == [(name, "") for name in SECRETS]
    # A copy that is filled in stays where it is.
    assert ignored("deploy/.env")
    git = ["git", "check-ignore", "--quiet", "deploy/.env"]
    subprocess.run(git, cwd=ROOT, env=clean_environment(), check=True)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", [{}, {"POSTGRES_PASSWORD": "", "S3_SECRET_KEY": ""}])
def test_a_missing_password_is_refused(name: str, value: dict[str, str]) -> None:
    others = value | {other: secret for other, secret in SECRETS.items() if other != name}
    with pytest.raises(KeyError, match=r"set it in deploy/\.env, for instance to what openssl rand -hex 24 prints"):
        filled(COMPOSE, others)


def test_all_variables_are_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    assert used == set(re.findall(r"^#?(\w+)=", (FOLDER / ".env.example").read_text(), re.MULTILINE))


def test_the_parts_know_each_other() -> None:
    parts = {name: service["environment"] for name, service in services().items()}
    server, database, store = parts["mlflow"], parts["database"], parts["store"]
    address = f"postgresql+psycopg://{database['POSTGRES_USER']}@database/{database['POSTGRES_DB']}"
    assert server["MLFLOW_BACKEND_STORE_URI"] == address
    assert server["PGPASSWORD"] == database["POSTGRES_PASSWORD"] == given("POSTGRES_PASSWORD")
    assert server["AWS_ENDPOINT_URL"] == f"http://store{store['VGW_PORT']}"
    assert server["AWS_ACCESS_KEY_ID"] == store["ROOT_ACCESS_KEY_ID"]
    assert server["AWS_SECRET_ACCESS_KEY"] == store["ROOT_SECRET_ACCESS_KEY"] == given("S3_SECRET_KEY")
    kept = [volume for service in services().values() for volume in service.get("volumes", [])]
    assert [volume.split(":")[0] for volume in kept] == list(COMPOSE["volumes"])
    assert services()["store"]["command"] == ["posix", services()["store"]["volumes"][0].split(":")[1]]


def test_versions_are_exact() -> None:
    images = [service["image"] for service in services().values() if "image" in service]
    assert len(images) == 2
    assert all(re.fullmatch(r"[\w/]+:v?\d+(\.\d+)+(-\w+)?", image) for image in images)
    [install] = [rest for keyword, rest in steps(FOLDER / "Dockerfile") if keyword == "RUN" and "pip install" in rest]
    constraints = (ROOT / "constraints.txt").read_text()
    for name in install.split("constraints.txt ")[1].replace("'", "").split():
        assert re.search(rf"^{re.escape(name.split('[')[0])}==", constraints, re.MULTILINE), name


class Deployment:
    """The parts at work, each until it is ended."""

    def __init__(self, image: Image) -> None:
        self.image, self.services, self._parts = image, services(REPRONET_HOST=HOST), dict[str, ExitStack]()
        self.port, self.uri = 0, ""
        self.database: Database | None = None
        self.log = image.root.with_name("server.log")
        self.here: Callable[[str], str] = str

    def start(self) -> None:
        self._parts = {name: ExitStack() for name in ("database", "store", "mlflow")}
        rows, files = (self.services[name]["environment"] for name in ("database", "store"))
        database = self._parts["database"].enter_context(
            postgresql(rows["POSTGRES_USER"], rows["POSTGRES_DB"], rows["POSTGRES_PASSWORD"], fsync="on")
        )
        self.store = self._parts["store"].enter_context(
            s3(files["ROOT_ACCESS_KEY_ID"], files["ROOT_SECRET_ACCESS_KEY"])
        )
        # It has no such page of its own; to read a bucket of this name is one.
        s3_client(self.store).create_bucket(Bucket=files["VGW_HEALTH"].strip("/"), ACL="public-read")
        self.database, self.port = database, free_port()
        self.uri = f"http://localhost:{self.port}"
        places = {
            "@database/": f"@localhost:{database.port}/",
            "http://store:7070": self.store["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"),
            "http://127.0.0.1:7070": self.store["AWS_ENDPOINT_URL"],
            "http://127.0.0.1:5000": f"http://127.0.0.1:{self.port}",
            "0.0.0.0": "127.0.0.1",
        }
        self.here = lambda text: replaced(text, places)
        self._parts["mlflow"].enter_context(self._served())

    @contextmanager
    def _served(self) -> Iterator[None]:
        service = self.services["mlflow"]
        command = [str(self.port) if part == "5000" else self.here(part) for part in service["command"]]
        # Its log into a file: a pipe that nobody reads would fill up, and stop it.
        server = subprocess.Popen(
            ["sh", "-c", f'exec "$@" > "{self.log}" 2>&1', "sh", *self.image.entrypoint, *command],
            cwd=self.image.root,
            env=self.image.environment | self.environment("mlflow"),
            start_new_session=True,
        )
        try:
            wait_for(self.port, server)
            wait_until_works(lambda: self.works("mlflow"))
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # by another it would first wait for what it cannot reach any more
            server.wait()

    def environment(self, name: str) -> dict[str, str]:
        """What compose.yaml gives a part by its environment."""
        return {name: self.here(value) for name, value in self.services[name]["environment"].items()}

    def works(self, name: str) -> bool:
        """Run the health check of a part, as it stands there."""
        assert self.database is not None
        check = self.services[name]["healthcheck"]
        own = self.image.environment if name == "mlflow" else clean_environment() | {"PGPORT": str(self.database.port)}
        command = [self.here(part) for part in check["test"][1:]]
        seconds = float(check["timeout"].removesuffix("s"))
        try:
            subprocess.run(command, env=own | self.environment(name), capture_output=True, check=True, timeout=seconds)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        return True

    def end(self, *names: str) -> None:
        for name in names or ("mlflow", "store", "database"):
            self._parts[name].close()


def wait_until_works(works: Callable[[], bool]) -> None:
    """Wait for as long as compose would: its first processes import for a while after it listens."""
    check = services()["mlflow"]["healthcheck"]
    deadline = time.monotonic() + sum(float(check[name].removesuffix("s")) for name in ("start_period", "interval"))
    while not works():
        assert time.monotonic() < deadline, "MLflow is not healthy"
        time.sleep(1)


def replaced(text: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        text = text.replace(there, here)
    return text


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return carried_out(FOLDER / "Dockerfile", ROOT, tmp_path_factory.mktemp("image") / "made")


@pytest.fixture(scope="module")
def deployment(image: Image) -> Iterator[Deployment]:
    deployment = Deployment(image)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.end()


def asked(uri: str, host: str, origin: str = "") -> int:
    """Search in MLflow by this name of it, as a page of `origin` would; return the status of the answer."""
    headers = {"Host": host, "Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    url = f"{uri}/api/2.0/mlflow/experiments/search"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b'{"max_results": 1}', headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_it_answers_to_its_names_alone(deployment: Deployment) -> None:
    assert [deployment.works(name) for name in deployment.services] == [True] * 3
    for host in ("localhost:5000", "127.0.0.1:5000", HOST):
        assert asked(deployment.uri, host) == 200
        assert asked(deployment.uri, host, f"https://{HOST}") == 200
        assert asked(deployment.uri, host, "https://example.com") == 403
    assert asked(deployment.uri, "example.com") == 403


def check_model(run: Any, project: Project, digits: Path) -> None:
    """Read the model of a run from its store, which has to give the classes that evaluate wrote."""
    predictions = pd.read_csv(project.root / "plots/predictions.csv")
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    [output] = run.outputs.model_outputs
    images = np.load(digits / "images.npy")[predictions["index"]]
    scores = mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(images)
    assert [classes[i] for i in scores.argmax(1)] == predictions["predicted"].tolist()


@pytest.mark.slow
def test_rows_move_there_and_others_read_them(
    deployment: Deployment, make_project: Callable[[], Project], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    (project.root / "dvc.lock").unlink()
    project.edit("params.yaml", "epochs: 30 ", "epochs: 2 ")
    project("dvc", "repro")
    own = (project.root / "mlflow.db").read_bytes()
    said = project("python", "-m", "tools.sync", "workspace", MLFLOW_TRACKING_URI=deployment.uri)
    assert said.splitlines()[-1] == "in all: 1 created"
    project("dvc", "repro", "--force", MLFLOW_TRACKING_URI=deployment.uri)
    project("python", "-m", "tools.sync", "workspace", MLFLOW_TRACKING_URI=deployment.uri)
    assert (project.root / "mlflow.db").read_bytes() == own
    found = runs(deployment.uri)
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(deployment.uri)
    for run in found:
        assert run.data.metrics["test/accuracy"] == found[0].data.metrics["test/accuracy"]
        check_model(run, project, digits)
    listed = s3_client(deployment.store).list_objects_v2(Bucket="mlflow", Prefix="artifacts/")
    assert listed["KeyCount"] > 20
    for secret in SECRETS.values():
        assert not [path for path in project.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not [secret for secret in SECRETS.values() if secret in deployment.log.read_text()]
    assert not [path for path in deployment.image.root.iterdir() if path.name.startswith("ml")], (
        "it is all in the parts"
    )


@pytest.mark.slow
def test_a_health_check_sees_what_is_gone(image: Image) -> None:
    deployment = Deployment(image)
    try:
        deployment.start()
        assert [deployment.works(name) for name in ("mlflow", "database", "store")] == [True] * 3
        deployment.end("store")
        assert [deployment.works(name) for name in ("mlflow", "database", "store")] == [False, True, False]
        deployment.end("database")
        assert [deployment.works(name) for name in ("mlflow", "database", "store")] == [False] * 3
    finally:
        deployment.end()


PAGE = (ROOT / "docs/server.md").read_text()


def in_backup(start: str) -> list[str]:
    """The lines of the page about backups that start with this, in their order."""
    section = PAGE.split("\n## Backup\n")[1].split("\n## ")[0].replace("\\\n    ", "")
    return [line for line in section.splitlines() if line.startswith(start)]


def test_backups_are_the_same_with_containers_and_without() -> None:
    inside = [line.split(" exec -T database ")[1] for line in in_backup("docker compose") if " exec " in line]
    without = [line.removeprefix("runuser -u mlflow -- ") for line in in_backup("runuser")]
    assert [line.replace("-U mlflow ", "") for line in inside] == without
    assert len(without) == 2
    for line in in_backup("docker run"):
        assert services()["database"]["image"] in line
        assert f"-v {COMPOSE['name']}_{services()['store']['volumes'][0]} " in line


def test_packages_are_the_same_with_containers_and_without() -> None:
    [install] = [rest for keyword, rest in steps(FOLDER / "Dockerfile") if keyword == "RUN" and "pip install" in rest]
    own = install.split("pip ")[1].replace("--no-cache-dir ", "")
    assert PAGE.count(f"/opt/mlflow/bin/pip {own}\n") == 2


@contextmanager
def by_unit(image: Image, database: Database, state: Path) -> Iterator[str]:
    """Start MLflow as the unit of systemd does that the page has, and yield its address."""
    [unit] = re.findall(r"^```ini\n(.*?)^```", PAGE.replace("\\\n    ", ""), re.MULTILINE | re.DOTALL)
    [start] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    port = free_port()
    places = {"/opt/mlflow": f"{image.root}/.venv", "/var/lib/mlflow": str(state), "--port 5000": f"--port {port}"}
    environment = {
        name: replaced(value, places) for name, value in re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE)
    }
    server = subprocess.Popen(
        ["sh", "-c", f"exec {replaced(start, places)} > '{state}.log' 2>&1"],
        cwd=state,
        env=image.environment | environment | by_socket(database),
        start_new_session=True,
    )
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def by_socket(database: Database) -> dict[str, str]:
    """What lets a client in as Debian's PostgreSQL lets in the user of this name."""
    return {"PGHOST": str(database.folder), "PGPORT": str(database.port), "PGUSER": database.user}


@pytest.mark.slow
def test_without_containers_and_back_from_a_backup(
    image: Image, make_project: Callable[[], Project], digits: Path, tmp_path: Path
) -> None:
    project, first, second = make_project(), tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    project.edit("params.yaml", "epochs: 30 ", "epochs: 2 ")

    def shell(line: str, database: Database, state: Path) -> None:
        own = line.removeprefix("runuser -u mlflow -- ")
        places = {"/var/lib/mlflow": str(state), "/opt/mlflow": f"{image.root}/.venv"}
        environment = clean_environment() | by_socket(database)
        subprocess.run(["sh", "-ec", replaced(own, places)], cwd=tmp_path, env=environment, check=True)

    [dump, restore], [pack, unpack] = in_backup("runuser"), in_backup("tar")
    with postgresql("mlflow", "mlflow") as database:
        with by_unit(image, database, first) as uri:
            project("dvc", "repro", MLFLOW_TRACKING_URI=uri)
            project("python", "-m", "tools.sync", "workspace", MLFLOW_TRACKING_URI=uri)
            shell(dump, database, first)
            shell(pack, database, first)
        [upgrade] = re.findall(r"^runuser .* db upgrade .*$", PAGE, re.MULTILINE)
        shell(upgrade, database, first)
    with postgresql("mlflow", "mlflow") as database:
        shell(restore, database, second)
        shell(unpack, database, second)
        with by_unit(image, database, second) as uri:
            [run] = runs(uri)
            mlflow.set_tracking_uri(uri)
            check_model(run, project, digits)
            said = project("python", "-m", "tools.sync", "workspace", MLFLOW_TRACKING_URI=uri)
            assert said.splitlines()[-1] == "in all: 1 in place"


EPOCHS = 3
TRAIN = """
python -m stages train data/prepared models/net.safetensors metrics/train.csv
python -m stages evaluate models/net.safetensors data/prepared metrics/train.csv metrics/evaluate.json plots
"""


def points(run: Any, client: mlflow.MlflowClient) -> dict[str, list[tuple[int, float]]]:
    """All points of a run, by name, as often as they are there."""
    read = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((point.step, point.value) for point in history) for name, history in read.items()}


@pytest.mark.parametrize(
    "count", [pytest.param(3, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.torture)]
)
def test_trainings_at_once(
    count: int,
    deployment: Deployment,
    make_project: Callable[[], Project],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, experiment = make_project(), f"{count} at once"
    shutil.copytree(digits, project.root / "data/prepared")
    project.edit("params.yaml", "epochs: 30 ", f"epochs: {EPOCHS} ")
    project.edit("params.yaml", "log_steps: 0 ", "log_steps: 1 ")
    own = {"MLFLOW_TRACKING_URI": deployment.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    copies = [
        Project.at(shutil.copytree(project.root, tmp_path / f"copy-{seed}", symlinks=True)) for seed in range(count)
    ]
    for seed, copy in enumerate(copies):
        copy.edit("params.yaml", "seed: 0                # of the first", f"seed: {seed} # of the first")

    started = time.monotonic()
    trainings = [copy.start("bash", "-ec", TRAIN, **own) for copy in copies]
    for training in trainings:
        printed, _ = training.communicate(timeout=300)
        assert training.returncode == 0, printed
    seconds = time.monotonic() - started

    # Here all of them and the server share a few cores: what a stage did not wait for, tools.sync brings.
    late = [copy for copy in copies if list((copy.root / ".repronet/journals").glob("*"))]
    for some in (late[at : at + 2] for at in range(0, len(late), 2)):
        for sync in [copy.start("python", "-m", "tools.sync", **own) for copy in some]:
            printed, _ = sync.communicate(timeout=300)
            assert sync.returncode == 0, printed
    synced = time.monotonic() - started - seconds

    mlflow.set_tracking_uri(deployment.uri)
    client = mlflow.MlflowClient(deployment.uri)
    named = client.get_experiment_by_name(experiment)
    assert named is not None
    listed = client.search_runs([named.experiment_id])
    found = {run.data.tags["directory"]: run for run in listed}
    assert len(listed) == len(found) == count
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    n_train = json.loads((digits / "dataset.json").read_text())["sizes"]["train"]
    steps_of = list(range(1, EPOCHS * -(-n_train // 64) + 1))
    counted, names = 0, set[frozenset[str]]()
    for copy in copies:
        assert not list((copy.root / ".repronet/journals").glob("*"))
        run = found[str(copy.root)]
        assert run.info.status == "FINISHED"
        logged = points(run, client)
        history = pd.read_csv(copy.root / "metrics/train.csv", index_col="epoch")
        assert list(history.index) == list(range(1, EPOCHS + 1))
        for name in map(str, history):
            assert [step for step, _ in logged[name]] == list(history.index)
            assert [value for _, value in logged[name]] == pytest.approx(history[name].to_list(), rel=1e-4)
        for name in ("step/loss", "step/lr"):
            assert [step for step, _ in logged[name]] == steps_of
        for name, values in logged.items():
            assert len({step for step, _ in values}) == len(values), f"{name} has a point twice"
        names.add(frozenset(logged))
        counted += sum(map(len, logged.values()))
        assert run.data.tags[WEIGHTS_TAG] == sha256((copy.root / "models/net.safetensors").read_bytes()).hexdigest()
        check_model(run, copy, digits)
    assert len(names) == 1
    print(
        f"{count} trainings at once: {counted} points; {seconds:.0f} s, and {synced:.0f} s of tools.sync"
        f" for the {len(late)} that had something left"
    )

"""Servers that tests start and end: MLflow's, PostgreSQL, and one that speaks as S3 does."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Project, free_port, wait_for, wait_until

BUCKET = "repronet"


class Server:
    """A real server of MLflow, which can be harmed, and what stands in for one at its port."""

    def __init__(self, project: Project, backend: str = "", artifacts: str = "", **environment: str) -> None:
        """By default its database and its artifacts are in the project."""
        self._project, self.port, self._environment = project, free_port(), environment
        self._backend = backend or f"sqlite:///{project.root}/server.db"
        self._artifacts = artifacts or f"{project.root}/served"
        self._process: subprocess.Popen[str] | None = None
        self._stub: socket.socket | None = None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--artifacts-destination", self._artifacts]
        # Its log into a file: a pipe that nobody reads would fill up, and stop it.
        self._process = self._project.start(
            *["bash", "-c", 'exec "$@" > server.log 2>&1', "bash", *command],
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_BACKEND_STORE_URI=self._backend,
            **self._environment,
        )
        wait_for(self.port, self._process)

    def send(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        time.sleep(1)
        self.start()

    def answer_500(self) -> None:
        """Let another server have the port, that answers everything with 500."""
        self.answer_nothing()
        assert self._stub is not None
        threading.Thread(target=fails, args=(self._stub,), daemon=True).start()

    def answer_nothing(self) -> None:
        """Let the port take connections, and nothing ever come of them."""
        self.kill()
        deadline = time.monotonic() + 20
        while self._stub is None:
            try:
                self._stub = socket.create_server(("127.0.0.1", self.port), backlog=100)
            except OSError:  # what was killed has the port for a moment yet
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def come_back(self) -> None:
        """Undo what stands in."""
        assert self._stub is not None
        with suppress(OSError):
            self._stub.shutdown(socket.SHUT_RDWR)  # ends a waiting accept
        self._stub.close()
        self._stub = None
        self.start()


def fails(listening: socket.socket) -> None:
    """Answer all that comes with 500, until the socket is closed."""
    answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 20)
                connection.sendall(answer)


@contextmanager
def s3(key: str = "test", secret: str = "") -> Iterator[dict[str, str]]:
    """Yield the environment that lets S3's clients reach a server with an empty bucket; it takes any key for right."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret or secrets.token_hex(),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        s3_client(environment).create_bucket(Bucket=BUCKET)
        yield environment
    finally:
        server.kill()
        server.wait()


def s3_client(environment: dict[str, str]) -> Any:
    """A client of the server that this environment names."""
    import boto3

    keys = {name.lower(): environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        **keys,
    )


@dataclass(frozen=True)
class Database:
    """An empty database, reached by TCP with the password, or without it by a socket in `folder`."""

    user: str
    name: str
    password: str
    port: int
    folder: Path

    @property
    def address(self) -> str:
        """What MLflow's server takes, with user and password."""
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.name}"


@contextmanager
def postgresql(
    user: str = "repronet", name: str = "postgres", password: str = "", fsync: str = "off"
) -> Iterator[Database]:
    """Yield a database of a new server."""
    [*_, binaries] = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    # It refuses to be root, for whom Debian has this user.
    owner: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder, port, password = Path(tempfile.mkdtemp()), free_port(), password or secrets.token_hex()
    try:
        (folder / "password").write_text(password)
        if owner:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres", "postgres")
        data, own = str(folder / "data"), ["-c", f"fsync={fsync}", "-k", str(folder)]
        new = ["-D", data, "-U", user, f"--pwfile={folder}/password", "--auth-local=trust", "--auth-host=scram-sha-256"]
        subprocess.run([binaries / "initdb", *new], cwd=folder, check=True, capture_output=True, **owner)
        command = [str(binaries / "postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), *own]
        silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, cwd=folder, **silent, **owner)
        try:
            wait_for(port, server)
            by_socket = ["-h", str(folder), "-p", str(port), "-U", user]
            ask = [str(binaries / "pg_isready"), "-q", *by_socket]  # it listens before it takes connections
            wait_until(lambda: subprocess.run(ask, check=False).returncode == 0, seconds=60)
            if name != "postgres":
                subprocess.run([binaries / "createdb", *by_socket, name], check=True, capture_output=True)
            yield Database(user, name, password, port, folder)
        finally:
            server.send_signal(signal.SIGINT)  # which ends its clients' connections
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder)

"""Serve a run's model over HTTP, on this machine only.

    python -m tools.serve best --port 5001
    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{"inputs": [[[0, ...], ...]]}'

A run is named as for tools.compare: by id, by name (DVC's), or as `best`, the best by validation; or give a model of
the registry: repronet@champion. The server is MLflow's own. It takes uint8 images (n, height, width) as JSON, and
answers with scores (n, classes); the largest one is the class.
"""

import errno
import os
import socket
import sys

from stages.base import cli
from stages.base.errors import InputError
from tools.runs import Runs

HOST = "127.0.0.1"  # MLflow's servers ask for no password, so nobody else may reach them


def main() -> None:
    parser = cli.parser("tools.serve", __doc__)
    parser.add_argument("run", nargs="?", default="best", metavar="RUN", help="run id, run name, MODEL@ALIAS or best")
    parser.add_argument("--port", type=int, default=5001, help="default 5001")
    arguments = parser.parse_args()
    check_port(arguments.port, "--port 5002")
    runs = Runs()
    if "@" in arguments.run:
        name, alias = arguments.run.split("@", 1)
        if runs.model_version(name, alias) is None:
            raise InputError(f"the registry in {runs.uri} has no model {arguments.run}")
        served, model = arguments.run, f"models:/{arguments.run}"
    else:
        run = runs.find(arguments.run)
        served, model = f"{run.name} ({run.metrics['test/accuracy']:.4f} test accuracy)", run.model
    print(f"serving {served} on http://{HOST}:{arguments.port}/invocations", flush=True)
    program = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": runs.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    # In this process's place, so that Ctrl-C and SIGTERM reach the server.
    os.execve(sys.executable, [*program, "--host", HOST, "--port", str(arguments.port)], environment)


def check_port(port: int, hint: str) -> None:
    """Raise InputError, ending in `hint`, unless a server can listen on this port of HOST."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will, just after another has ended
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "is taken, perhaps by an earlier server" if taken else f"cannot be used ({error})"
            raise InputError(f"port {port} of {HOST} {reason}; another: {hint}") from error


if __name__ == "__main__":
    cli.run(main)

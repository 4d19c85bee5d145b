"""Serve a run's model over HTTP, on this machine only.

    python -m tools.serve best --port 5001
    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{"inputs": [[[0, ...], ...]]}'

A run is named as for tools.compare: by id, by name (DVC's), or as `best`, the best by validation; or give a model of
the registry, repronet@champion, which stands for its run. Requests and answers are as MLflow's servers have them, but
of the run only its weights are loaded, which hold no code. The server takes uint8 images (n, height, width) as JSON,
and answers with scores (n, classes); the largest one is the class.
"""

import errno
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say
from tools.runs import Runs

HOST = "127.0.0.1"  # the server asks for no password, so nobody else may reach it


def main() -> None:
    parser = cli.parser("tools.serve", __doc__)
    parser.add_argument("run", nargs="?", default="best", metavar="RUN", help="run id, run name, MODEL@ALIAS or best")
    parser.add_argument("--port", type=int, default=5001, help="default 5001")
    arguments = parser.parse_args()
    check_port(arguments.port, "--port 5002")
    runs = Runs()
    run = runs.of_model(arguments.run) if "@" in arguments.run else runs.find(arguments.run)

    import uvicorn

    from tools.invocations import Served, application

    with TemporaryDirectory() as folder:
        served = Served(runs.weights(run, Path(folder)))
    if run.remark:
        say(run.remark)
    accuracy = f"{run.metrics['test/accuracy']:.4f} test accuracy"
    say(f"serving {run.name} ({accuracy}) on http://{HOST}:{arguments.port}/invocations")
    # Some requests at once, and no more: each may be large.
    uvicorn.run(
        application(served.scores),
        host=HOST,
        port=arguments.port,
        lifespan="off",
        ws="none",
        limit_concurrency=16,
        log_level="warning",
        server_header=False,
    )


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

"""Serve MLflow's pages on this machine and print the link to a prepared view of the training runs.

    python -m tools.ui --port 5000
    python -m tools.ui --sweep lr

Its columns are the parameters that vary between the runs and the test metrics, the best run first; its charts are the
learning curves. MLflow lists it under Views, for all who use the store. Where MLFLOW_TRACKING_URI names a server, the
view is prepared there and nothing is started.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from stages.base import cli
from stages.base.errors import InputError, unknown
from stages.base.params import load_params
from tools.runs import Runs
from tools.servers import HOST, check_port, listens

METRICS = ["test/accuracy", "test/loss", "best/valid_accuracy", "test/macro_f1", "test/never_predicted"]
CURVES = ["train/loss", "valid/loss", "train/accuracy", "valid/accuracy"]
MOST_PARAMETERS = 8  # more columns than that nobody sees at once


def main() -> None:
    parser = cli.parser("tools.ui", __doc__)
    parser.add_argument("--port", type=int, default=5000, help=f"of {HOST}, by default 5000")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs of this sweep alone")
    arguments = parser.parse_args()
    store = Runs()
    remote = store.uri.startswith(("http:", "https:"))
    if not remote:
        check_port(arguments.port, "make ui PORT=5001")
    path = prepare(store, arguments.sweep)
    if remote:
        announce(re.sub("//[^/]*@", "//", store.uri).rstrip("/") + path)  # without a password
        return
    with serving(store.uri, arguments.port) as server:
        announce(f"http://{HOST}:{arguments.port}{path}")
        try:
            server.wait()
        except KeyboardInterrupt:  # how a server is meant to be ended
            return
    raise InputError(f"MLflow's server ended by itself, with status {server.returncode}")


def prepare(store: Runs, sweep: str | None) -> str:
    """Write the view into the store and return its path in MLflow's pages. Raises InputError if it would be empty."""
    runs = list(store.client.search_runs([store.experiment_id], max_results=50_000))
    if not runs:
        raise InputError(f"there are no runs in {store.uri} yet: make repro comes first")
    if sweep is not None:
        sweeps = sorted({run.data.tags["sweep"] for run in runs if run.data.tags.get("sweep")})
        if sweep not in sweeps:
            raise InputError(f"unknown sweep {sweep!r}{unknown(sweep, sweeps)}" if sweeps else "no run is of a sweep")
        runs = [run for run in runs if run.data.tags.get("sweep") == sweep]
    name = f"Sweep {sweep}" if sweep else "Training runs"
    key = re.sub(r"[^a-z0-9_.-]", "-", name.lower())
    names = varying([run.data.params for run in runs], list(load_params().flat()))
    state = view(names, METRICS, f"tags.sweep = '{sweep}'" if sweep else "")
    store.client.set_experiment_tag(store.experiment_id, f"mlflow.sharedViewState.{key}", packed(name, state))
    # Only the key: a sort order or filter in the link would make MLflow ignore the view's.
    return f"/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={quote(key)}"


def varying(runs: Sequence[dict[str, str]], params: Sequence[str]) -> list[str]:
    """Return the parameters whose values differ between the runs, in the order of `params`, not too many."""
    known = [*params, *sorted(set().union(*runs) - set(params))]
    return [name for name in known if len({run.get(name) for run in runs}) > 1][:MOST_PARAMETERS]


def view(parameters: Sequence[str], metrics: Sequence[str], search: str = "") -> dict[str, Any]:
    """Return a state of MLflow's page of runs: columns, order, filter and charts.

    The names are those that MLflow 3.17.2 writes when a view is saved under Views. Of a state its page takes what it
    knows and leaves the rest at its defaults.
    """
    columns = {f"params.`{name}`": name for name in parameters} | {f"metrics.`{name}`": name for name in metrics}
    best, section = f"metrics.`{metrics[0]}`", "learning-curves"
    return {
        "searchFilter": search,
        "orderByKey": best,
        "orderByAsc": False,
        "selectedColumns": [*columns, "attributes.`Models`"],
        "columnOrder": list(columns),
        # In pixels: as wide as the names, with an arrow beside the first metric's.
        "columnWidths": {
            column: max(90, 26 + 6 * len(name)) + 30 * (column == best) for column, name in columns.items()
        },
        "runsHiddenMode": "FIRST_20_RUNS",  # in the charts; 10 by default
        "compareRunSections": [
            {
                "uuid": section,
                "name": "Learning curves",
                "display": True,
                "isReordered": True,
                "columns": 2,
                "cardHeight": 300,
            }
        ],
        "compareRunCharts": [
            {
                "uuid": name,
                "type": "LINE",
                "metricSectionId": section,
                "metricKey": name,
                "displayName": name,
                "deleted": False,
                "isGenerated": False,
                "lineSmoothness": 0,
                "scaleType": "linear",
                "xAxisKey": "step",
                "yAxisKey": "metric",
                "useGlobalXaxisKey": True,
                "useGlobalLineSmoothing": True,
            }
            for name in CURVES
        ],
        "isAccordionReordered": True,  # else the sections are sorted by name
    }


def packed(name: str, state: dict[str, Any]) -> str:
    """Return a view as MLflow 3.17.2 keeps it in a tag: compressed, for some stores take 5,000 characters at most."""
    compressed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{compressed}"})


@contextmanager
def serving(uri: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield MLflow's server of this store once it listens; it ends with the block, and its children with it."""
    backend = ["--backend-store-uri", uri, "--uvicorn-opts", "--log-level warning", "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), *backend],
        # Jobs are for judging language models, and MLflow starts more processes for them.
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,  # Ctrl-C comes to us alone
    )
    try:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # the terminal was closed
        while server.poll() is None and not listens(port):
            time.sleep(0.1)
        if server.returncode is not None:
            raise InputError(f"MLflow's server did not start: status {server.returncode}")
        yield server
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # make passes on what it gets itself
            signal.signal(number, signal.SIG_IGN)
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def announce(link: str) -> None:
    print(f"training runs:   {link}\nlearning curves: {link}&compareRunsMode=CHART", flush=True)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"):
        webbrowser.open(link)


if __name__ == "__main__":
    cli.run(main)

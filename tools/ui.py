"""Serve MLflow's pages on this machine and print the link to a prepared view of the training runs.

    python -m tools.ui --port 5000
    python -m tools.ui --sweep lr

Its columns are the parameters that vary between the runs and the test metrics, the best run first; its charts are the
learning curves. MLflow lists it under Views, for all who use the store. Where MLFLOW_TRACKING_URI names a server, the
view is prepared there and nothing is started. How MLflow keeps views is not documented, so a version of it that the
tests have not seen gets the plain page of the runs.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import webbrowser
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from stages.base import cli
from stages.base.errors import InputError, unknown
from stages.base.params import load_params
from stages.base.processes import ignore_signals
from stages.base.text import say, warn
from stages.tracking.search import equals
from tools.runs import Runs
from tools.serve import HOST, check_port

KNOWN = "3.17"  # the version of MLflow whose views are known: tests/tools/test_ui.py looks at them in a browser

METRICS = ["test/accuracy", "test/loss", "best/valid_accuracy", "test/macro_f1", "test/never_predicted"]
CURVES = ["train/loss", "valid/loss", "train/accuracy", "valid/accuracy"]
MOST_PARAMETERS = 8  # as many columns as can be seen at once


def main() -> None:
    parser = cli.parser("tools.ui", __doc__)
    parser.add_argument("--port", type=int, default=5000, help=f"of {HOST}, by default 5000")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs of this sweep alone")
    arguments = parser.parse_args()
    store = Runs()
    if remote := store.uri.startswith(("http:", "https:")):
        shown_by = server_version(store.uri)
    else:
        check_port(arguments.port, "make ui PORT=5001")
        shown_by = version("mlflow")
    path = prepare(store, arguments.sweep, shown_by)
    if remote:
        announce(store.name.replace("***@", "").rstrip("/") + path)
        return
    with serving(store.uri, arguments.port) as server:
        announce(f"http://{HOST}:{arguments.port}{path}")
        try:
            server.wait()
        except KeyboardInterrupt:  # how a server is meant to be ended
            return
    raise InputError(f"MLflow's server ended by itself, with status {server.returncode}")


def server_version(uri: str) -> str:
    """Return the version of the MLflow server at `uri`, or that it is unknown."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(get_default_host_creds(uri), "/version", "GET")  # type: ignore[no-untyped-call]
        return str(response.text) if response.ok else "of an unknown version"
    except MlflowException:  # from a proxy that does not pass it on, for one
        return "of an unknown version"


def prepare(store: Runs, sweep: str | None, shown_by: str) -> str:
    """Write the view into the store and return its path in the pages of MLflow, which are of the version `shown_by`.

    For an unknown version the path is that of the page of the runs as it comes, and a warning says what is missing.
    Raises InputError if there are no runs to show.
    """
    runs = store.store.search()
    if not runs:
        raise InputError(f"there are no runs in {store.name} yet: make repro comes first")
    if sweep is not None:
        sweeps = sorted({run.data.tags["sweep"] for run in runs if run.data.tags.get("sweep")})
        if sweep not in sweeps:
            raise InputError(f"unknown sweep {sweep!r}{unknown(sweep, sweeps)}" if sweeps else "no run is of a sweep")
        runs = [run for run in runs if run.data.tags.get("sweep") == sweep]
    search = equals("sweep", sweep) if sweep else ""
    page = f"/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    if not shown_by.startswith(f"{KNOWN}."):
        warn(
            f"warning: MLflow {shown_by} may keep views in another way than {KNOWN}, so none was prepared: the columns,"
            " their order and the charts have to be chosen on the page"
        )
        return f"{page}&searchFilter={quote(search)}" if search else page
    name = f"Sweep {sweep}" if sweep else "Training runs"
    key = re.sub(r"[^a-z0-9_.-]", "-", name.lower())
    params = varying([run.data.params for run in runs], list(load_params().flat()))
    tag = packed(name, view(params, METRICS, search))
    try:
        store.client.set_experiment_tag(store.experiment_id, f"mlflow.sharedViewState.{key}", tag)
    except Exception as error:
        raise InputError(f"MLflow at {store.name} cannot be written: {store.store.why(error)}") from error
    # Only the key: a sort order or filter in the link would make MLflow ignore the view's.
    return f"{page}&viewStateShareKey={quote(key)}"


def varying(runs: Sequence[dict[str, str]], params: Sequence[str]) -> list[str]:
    """Return the parameters whose values differ between the runs, in the order of `params`, not too many."""
    known = [*params, *sorted(set().union(*runs) - set(params))]
    return [name for name in known if len({run.get(name) for run in runs}) > 1][:MOST_PARAMETERS]


def view(params: Sequence[str], metrics: Sequence[str], search: str = "") -> dict[str, Any]:
    """Return a state of MLflow's page of runs: columns, order, filter and charts.

    The names are those that MLflow 3.17.2 writes when a view is saved under Views. Of a state its page takes what it
    knows and leaves the rest at its defaults.
    """
    columns = {f"params.`{name}`": name for name in params} | {f"metrics.`{name}`": name for name in metrics}
    best = f"metrics.`{metrics[0]}`"
    section = {"uuid": "learning-curves", "name": "Learning curves", "columns": 2, "cardHeight": 300}
    chart = {"type": "LINE", "metricSectionId": section["uuid"], "deleted": False, "isGenerated": False}
    chart |= {"scaleType": "linear", "xAxisKey": "step", "yAxisKey": "metric", "useGlobalXaxisKey": True}
    chart |= {"lineSmoothness": 0, "useGlobalLineSmoothing": True}
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
        "compareRunSections": [section | {"display": True, "isReordered": True}],
        "compareRunCharts": [{"uuid": name, "metricKey": name, "displayName": name} | chart for name in CURVES],
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
    options = ["--uvicorn-opts", "--log-level warning", "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), *options],
        # Jobs are for judging language models, and MLflow starts more processes for them. The address stands in no
        # command line, which all users can see: it may hold a password.
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": uri},
        start_new_session=True,  # Ctrl-C comes to us alone
    )
    try:
        while server.poll() is None and not listens(port):
            time.sleep(0.1)
        if server.returncode is not None:
            raise InputError(f"MLflow's server did not start: status {server.returncode}")
        yield server
    finally:
        ignore_signals()  # make passes on what it gets itself
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def listens(port: int) -> bool:
    """Return whether a server listens on this port of HOST."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def announce(link: str) -> None:
    """Print the link to the runs and to their charts, and open it in a browser where there is a desktop."""
    say(f"training runs:   {link}\nlearning curves: {link}&compareRunsMode=CHART")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"):
        webbrowser.open(link)


if __name__ == "__main__":
    cli.run(main)

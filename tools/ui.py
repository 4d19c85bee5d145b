"""Serve MLflow's pages on this machine and print the link to a prepared view of the training runs.

    python -m tools.ui --port 5000
    python -m tools.ui --sweep lr

Its columns are metrics and what varies between the runs, the best by validation first; its charts are the learning
curves. On this machine whoever opens the pages gets it, see pages.py. MLflow also lists it under Views, for all who use
the store: where MLFLOW_TRACKING_URI names a server, the view is prepared there and nothing is started. How MLflow keeps
views is not documented, so a version of it that the tests have not seen gets the plain page of the runs.
"""

import base64
import json
import os
import re
import socket
import sys
import time
import webbrowser
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stages.base import cli
from stages.base.errors import InputError, unknown
from stages.base.params import load_params
from stages.base.text import say, warn
from stages.tracking import colours
from stages.tracking.params import given
from stages.tracking.search import equals
from tools import pages
from tools.runs import UNLOGGED, Runs
from tools.serve import HOST, check_port

if TYPE_CHECKING:
    from mlflow.entities import Run

KNOWN = "3.17"  # the version of MLflow whose views are known: tests/tools/test_ui.py looks at them in a browser

METRICS = ["best/valid_accuracy", "test/accuracy", "test/loss", "test/never_predicted"]  # the first is what sorts
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
    view = prepare(store, arguments.sweep, shown_by)
    if remote:
        announce(store.name.replace("***@", "").rstrip("/") + view.shared_path)
        return
    app = pages.application(store.uri, view.settings, view.path)
    with socket.create_server((HOST, arguments.port)) as listening:
        announce(f"http://{HOST}:{arguments.port}{view.path}")
        with suppress(KeyboardInterrupt):  # how a server is meant to be ended
            pages.serve(app, listening)


@dataclass(frozen=True)
class View:
    """A view of the runs: its path in MLflow's pages where the browser gets `settings`, and where it cannot."""

    path: str
    shared_path: str
    settings: dict[str, str]


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


def prepare(store: Runs, sweep: str | None, shown_by: str) -> View:
    """Write the view into the store and return it, for pages of MLflow that are of the version `shown_by`.

    For an unknown version it is the page of the runs as it comes, and a warning says what is missing. Raises InputError
    if there are no runs to show.
    """
    runs = store.store.search()
    if not runs:
        raise InputError(f"there are no runs in {store.name} yet: make repro comes first; {UNLOGGED}")
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
        plain = f"{page}&searchFilter={quote(search)}" if search else page
        return View(plain, plain, pages.SETTINGS)
    name = f"Sweep {sweep}" if sweep else "Training runs"
    key = re.sub(r"[^a-z0-9_.-]", "-", name.lower())
    params = varying([given(run) for run in runs], list(load_params().flat()))
    state = state_of(params, METRICS, search)
    try:
        give_colours(store, runs)
        store.client.set_experiment_tag(store.experiment_id, f"mlflow.sharedViewState.{key}", packed(name, state))
    except Exception as error:
        raise InputError(f"MLflow at {store.name} cannot be written: {store.store.why(error)}") from error
    # Only the key: a sort order or filter in the link would make MLflow ignore the view's.
    shared = f"{page}&viewStateShareKey={quote(key)}"
    return View(page, shared, pages.SETTINGS | pages.of_runs(store.experiment_id, state))


def give_colours(store: Runs, runs: "Sequence[Run]") -> None:
    """Give colours to runs that have none, as those of earlier versions."""
    taken = [run.data.tags.get(colours.TAG, "") for run in runs]
    for run in runs:
        if colours.TAG not in run.data.tags:
            taken.append(colours.least_used(taken))
            store.client.set_tag(run.info.run_id, colours.TAG, taken[-1])


def varying(runs: Sequence[dict[str, str]], params: Sequence[str]) -> list[str]:
    """Return the parameters whose values differ between the runs, in the order of `params`, not too many."""
    known = [*params, *sorted(set().union(*runs) - set(params))]
    return [name for name in known if len({run.get(name) for run in runs}) > 1][:MOST_PARAMETERS]


def state_of(params: Sequence[str], metrics: Sequence[str], search: str = "") -> dict[str, Any]:
    """Return a state of MLflow's page of runs: columns, order, filter and charts.

    The names are those that MLflow 3.17.2 writes when a view is saved under Views. Of a state its page takes what it
    knows and leaves the rest at its defaults.
    """
    columns = {f"metrics.`{name}`": name for name in metrics} | {f"params.`{name}`": name for name in params}
    best = f"metrics.`{metrics[0]}`"
    # In pixels: as wide as the names, with an arrow beside the first metric's.
    widths = {"attributes.`Run Name`": 180, "runDateAndNestInfo": 140}
    widths |= {column: max(90, 26 + 6 * len(name)) + 30 * (column == best) for column, name in columns.items()}
    section = {"uuid": "learning-curves", "name": "Learning curves", "columns": 2, "cardHeight": 300}
    chart = {"type": "LINE", "metricSectionId": section["uuid"], "deleted": False, "isGenerated": False}
    chart |= {"scaleType": "linear", "xAxisKey": "step", "yAxisKey": "metric", "useGlobalXaxisKey": True}
    chart |= {"lineSmoothness": 0, "useGlobalLineSmoothing": True}
    return {
        "searchFilter": search,
        "orderByKey": best,
        "orderByAsc": False,
        "selectedColumns": [*columns, "attributes.`Models`"],
        "columnOrder": list(widths),
        "columnWidths": widths,
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


def announce(link: str) -> None:
    """Print the link to the runs and to their charts, and open it in a browser where there is a desktop."""
    say(f"training runs:   {link}\nlearning curves: {link}&compareRunsMode=CHART")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"):
        # Some wait until the browser has ended, and the server is this process.
        Thread(target=webbrowser.open, args=(link,), daemon=True).start()


if __name__ == "__main__":
    cli.run(main)

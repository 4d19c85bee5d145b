"""MLflow's pages in this process, set up as the project wants them before a browser first shows them.

What a page looks like MLflow keeps in the browser: it greets a visitor with pages for language models, opens an
assistant over a third of the window, and shows of a run neither metrics nor parameters. So the page that loads all
others begins with a script that writes there what it is to look like. What a visitor changes from then on stays.
"""

import json
import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

# As MLflow 3.17.2 keeps it. Telemetry is of what is clicked on.
SETTINGS = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.settings.telemetry.enabled_v1": "false",
    "mlflow.telemetry.info.alert.dismissed_v1": "true",
    "mlflow.workflowType_v1": '"machine_learning"',
}

# Written again is only what has changed since it was last written: the rest is as the visitor left it.
SCRIPT = """<script>
const given = %s, before = JSON.parse(localStorage.getItem("repronet") || "{}")
for (const key in given) if (given[key] !== before[key]) localStorage.setItem(key, given[key])
localStorage.setItem("repronet", JSON.stringify(given))
if (["", "#/"].includes(location.hash)) location.replace(%s)
</script>"""


def of_runs(experiment_id: str, state: Mapping[str, Any]) -> dict[str, str]:
    """Return where a browser keeps the state of an experiment's page of runs, and the state."""
    return {f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment_id}"]-ReactComponentState': json.dumps(state)}


def application(uri: str, settings: Mapping[str, str], start: str) -> "FastAPI":
    """Return MLflow's server of the store at `uri`, for browsers with `settings`; without a page they get `start`."""
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR

    # As `mlflow server` sets them. Jobs are for judging language models, and MLflow starts processes for them.
    os.environ |= {BACKEND_STORE_URI_ENV_VAR: uri, ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/"}
    os.environ |= {SERVE_ARTIFACTS_ENV_VAR: "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what Starlette will do without one day
        from mlflow.server import app as pages
        from mlflow.server import fastapi_app
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    html = (Path(str(pages.static_folder)) / "index.html").read_text(encoding="utf-8")
    script = SCRIPT % (as_script(settings), as_script(start))
    front = HTMLResponse(html.replace("<head>", f"<head>{script}", 1), headers={"Cache-Control": "no-cache"})
    app: FastAPI = fastapi_app.app
    app.router.routes.insert(0, Route("/", lambda _request: front))  # the check of the Host header comes before
    return app


def as_script(value: object) -> str:
    """Return a value as it can stand in a page's script: a < in a name would end it."""
    return json.dumps(value).replace("<", "\\u003c")


def serve(app: "FastAPI", listening: socket.socket) -> None:
    """Answer what arrives at a socket, until Ctrl-C or SIGTERM, which is raised as KeyboardInterrupt."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run([listening])

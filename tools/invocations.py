"""A classifier over HTTP, by the protocol of MLflow's model servers: /invocations, /ping, /health and /version.

What a request holds is data: JSON with a list of images. A page of the web that a browser on this machine shows must
not get at the model either, so other hosts' names and other types than JSON are refused.
"""

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from stages.base.errors import InputError
from stages.batches.prepared import Split
from stages.nets.prediction import predict
from stages.nets.weights import load_weights

LARGEST = 64 << 20  # bytes of a request's body
THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
# Keys of MLflow's protocol. Those of tables are refused: an image is no row of named columns.
PIXELS = "pixels are whole numbers from 0 to 255, as they are prepared"
TENSORS, TABLES = ("inputs", "instances"), ("dataframe_split", "dataframe_records")

Scores = Callable[[npt.NDArray[np.uint8]], list[list[float]]]


class Served:
    """A classifier made of a weights file alone, for one request at a time."""

    def __init__(self, weights: Path) -> None:
        """Raises InputError if the file cannot be read, or its weights do not fit the net that it describes."""
        net, self._description = load_weights(weights)
        self._classifier, self._alone = self._description.classifier(net).eval(), Lock()

    def scores(self, images: npt.NDArray[np.uint8]) -> list[list[float]]:
        """Return the scores (n, n_classes) of images (n, h, w) or (n, 3, h, w). Raises InputError for other shapes."""
        net = self._description.net
        wanted = (net["channels"], net["image_size"], net["image_size"])
        try:
            seen = tuple(self._classifier[0](torch.from_numpy(images[:1])).shape[1:])
        except Exception:  # torchvision's transforms refuse shapes in many ways
            seen = ()
        if ((1, *seen) if len(seen) == 2 else seen) != wanted:
            after = f" after its transforms {self._description.transforms}" if self._description.transforms else ""
            takes = f"(n, {', '.join(map(str, wanted[1:] if wanted[0] == 1 else wanted))})"
            raise InputError(f"images of shape {images.shape}; the model takes {takes}{after}")
        split = Split(images, labels=torch.zeros(len(images), dtype=torch.int64), rows=torch.arange(len(images)))
        with self._alone:
            scores: list[list[float]] = predict(self._classifier, split).tolist()
        return scores


def application(scores: Scores) -> ASGIApp:
    """Return the server's application; `scores` takes images, uint8 (n, ...), and may raise InputError."""

    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return _error(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Type: {kind!r}; accepted: application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return _error(413, "REQUEST_LIMIT_EXCEEDED", f"more than {LARGEST:,} bytes; send fewer images at once")
        try:
            return JSONResponse({"predictions": await run_in_threadpool(lambda: scores(images_of(bytes(body))))})
        except InputError as error:
            return _error(400, "BAD_REQUEST", str(error))

    async def ping(_request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def mlflow_version(_request: Request) -> Response:
        return Response(version("mlflow"), media_type="application/json")

    routes = [
        Route("/invocations", invocations, methods=["POST"]),
        Route("/ping", ping),
        Route("/health", ping),
        Route("/version", mlflow_version),
    ]
    return _for_this_machine(Starlette(routes=routes))


def images_of(body: bytes) -> npt.NDArray[np.uint8]:
    """Return the images of a request, uint8 (n, ...). Raises InputError unless they are whole numbers of 0 to 255."""
    try:
        request: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from error
    keys = [key for key in (*TENSORS, *TABLES) if isinstance(request, dict) and key in request]
    if len(keys) != 1 or keys[0] in TABLES:
        found = ", ".join(map(repr, request)) if isinstance(request, dict) else f"a {type(request).__name__}"
        raise InputError(f'the body holds {found or "nothing"}; accepted: {{"inputs": [image, ...]}} or "instances"')
    if isinstance(request[keys[0]], list) and not _are_numbers(request[keys[0]]):
        raise InputError(f"{keys[0]}: {PIXELS}")
    try:
        values = np.array(request[keys[0]])
    except (ValueError, OverflowError) as error:
        raise InputError(f"{keys[0]}: not images of one shape: {error}") from error
    if values.ndim < 3 or len(values) == 0:
        raise InputError(f"{keys[0]}: an array of shape {values.shape}, should be (n, h, w) or (n, 3, h, w)")
    with np.errstate(invalid="ignore"):
        pixels = values.astype(np.uint8) if values.dtype.kind in "iuf" else np.zeros(0, np.uint8)
    if not np.array_equal(pixels, values):
        raise InputError(f"{keys[0]}: {PIXELS}")
    return pixels


def _are_numbers(values: object) -> bool:
    """Return whether these are lists of lists of numbers. One long text among them would make an array of its size."""
    todo = [values]
    while todo:
        one = todo.pop()
        if not isinstance(one, list):
            return False
        kinds = set(map(type, one))
        if kinds == {list}:
            todo += one
        elif not kinds <= {int, float}:
            return False
    return True


def _for_this_machine(inner: ASGIApp) -> ASGIApp:
    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and THIS_MACHINE.fullmatch(hosts[0]):
            await inner(scope, receive, send)
        else:
            refusal = _error(403, "PERMISSION_DENIED", "Host: not this machine; accepted: 127.0.0.1, localhost, [::1]")
            await refusal(scope, receive, send)

    return checked


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error_code": code, "message": message}, status)

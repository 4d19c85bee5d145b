"""The server's application: a page, image files at /predict, and the protocol of MLflow's model servers.

What a request holds is data. A page of the web that a browser on this machine shows must not get at the model either,
so other hosts' names and requests that come from other pages are refused, and MLflow's protocol takes JSON alone.
"""

import re
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.base.errors import InputError
from tools.model import Model
from tools.serve.invocations import images_of
from tools.serve.page import CONTENT_POLICY, page
from tools.serve.uploads import answers, uploads

LARGEST = 64 << 20  # bytes of a request's body
NAMES = (b"host", b"origin")
THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


class TooLargeError(Exception):
    """A request's body has more than LARGEST bytes."""


def application(model: Model) -> ASGIApp:
    """Return the server's application for a model."""
    html = HTMLResponse(page(model), headers={"Content-Security-Policy": CONTENT_POLICY})

    async def front(_request: Request) -> Response:
        return html

    async def predict(request: Request) -> Response:
        async with uploads(_limited(request)) as files:
            found = await run_in_threadpool(answers, model, files)
        return JSONResponse({"predictions": found}, 400 if all("error" in each for each in found) else 200)

    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return _error(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Type: {kind!r}; accepted: application/json")
        body = await _limited(request).body()
        scores = await run_in_threadpool(lambda: model.scores(images_of(body)).tolist())
        return JSONResponse({"predictions": scores})

    async def ping(_request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def mlflow_version(_request: Request) -> Response:
        return Response(version("mlflow"), media_type="application/json")

    async def wrong(_request: Request, error: Exception) -> Response:
        return _error(400, "BAD_REQUEST", str(error))

    async def too_large(_request: Request, _reason: Exception) -> Response:
        return _error(413, "REQUEST_LIMIT_EXCEEDED", f"more than {LARGEST:,} bytes; send fewer images at once")

    routes = [
        Route("/", front),
        Route("/predict", predict, methods=["POST"]),
        Route("/invocations", invocations, methods=["POST"]),
        Route("/ping", ping),
        Route("/health", ping),
        Route("/version", mlflow_version),
    ]
    return _for_this_machine(Starlette(routes=routes, exception_handlers={InputError: wrong, TooLargeError: too_large}))


def _limited(request: Request) -> Request:
    """Return the request with a body whose reading raises TooLargeError beyond LARGEST bytes."""
    n_bytes = 0

    async def receive() -> Message:
        nonlocal n_bytes
        message = await request.receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > LARGEST:
            raise TooLargeError
        return message

    return Request(request.scope, receive)


def _for_this_machine(inner: ASGIApp) -> ASGIApp:
    """Let through what names this machine as the host, and comes from no page or from one of this server's."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        hosts, origins = ([value.decode("latin-1") for key, value in scope["headers"] if key == name] for name in NAMES)
        if len(hosts) != 1 or not THIS_MACHINE.fullmatch(hosts[0]):
            refusal = "Host: not this machine; accepted: 127.0.0.1, localhost, [::1]"
        elif any(origin != f"http://{hosts[0]}" for origin in origins):
            refusal = "Origin: another page"
        else:
            await inner(scope, receive, send)
            return
        await _error(403, "PERMISSION_DENIED", refusal)(scope, receive, send)

    return checked


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error_code": code, "message": message}, status)

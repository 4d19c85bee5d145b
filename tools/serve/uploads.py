"""Image files that a form sends, and what the model says of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from stages.base.errors import InputError
from stages.base.text import utf8
from tools.model import Model

MOST = 32  # files of a request: what is decoded by this process itself
SENT = 'files in the field "image", as curl -F image=@cat.jpg sends them'
_decoding = Lock()  # Pillow's limits are the process's


@asynccontextmanager
async def uploads(request: Request) -> AsyncIterator[list[UploadFile]]:
    """Yield the files of a request. Raises InputError where it is no form, or has none, or more than MOST."""
    try:
        async with request.form(max_files=MOST, max_fields=MOST) as form:
            files = form.getlist("image")
            if not files or not all(isinstance(file, UploadFile) for file in files):
                raise InputError(f"the body holds {', '.join(map(repr, form)) or 'nothing'}; accepted: {SENT}")
            yield [file for file in files if isinstance(file, UploadFile)]
    except (HTTPException, LookupError, UnicodeError) as error:  # a form that is none, too much, or in odd letters
        detail = error.detail if isinstance(error, HTTPException) else f"{error}."
        raise InputError(f"{detail} Accepted: {SENT}, {MOST} at most") from error


def answers(model: Model, files: list[UploadFile]) -> list[dict[str, Any]]:
    """Return of each file its name, and class and probabilities by class, the largest first, or the error."""
    room = model.room(len(files))
    with TemporaryDirectory() as name, _decoding:
        paths = [Path(name) / str(place) for place in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file.file.read())
        _, rejections = model.decode(room, [str(path) for path in paths], range(len(files)), takes_stderr=False)
    usable = [place for place in range(len(files)) if place not in rejections]
    found: list[dict[str, Any]] = [{"file": utf8(file.filename or "")} for file in files]
    for place, rejection in rejections.items():
        found[place]["error"] = str(rejection)
    probabilities = model.probabilities(model.scores(room[usable])) if usable else ()
    for place, shares in zip(usable, probabilities, strict=True):
        values, labels = shares.sort(descending=True, stable=True)
        ranked = {model.classes[label]: round(value, 6) for label, value in zip(labels, values.tolist(), strict=True)}
        found[place] |= {"class": next(iter(ranked)), "probabilities": ranked}
    return found

"""The images in the body of a request by the protocol of MLflow's model servers: JSON with a list of them."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.base.errors import InputError

# Keys of MLflow's protocol. Those of tables are refused: an image is no row of named columns.
PIXELS = "pixels are whole numbers from 0 to 255, as they are prepared"
TENSORS, TABLES = ("inputs", "instances"), ("dataframe_split", "dataframe_records")


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

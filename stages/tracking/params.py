"""Params as MLflow keeps them."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.tracking.result import USED

if TYPE_CHECKING:
    from mlflow.entities import Run

LONGEST = 6000  # characters of a param


def as_logged(params: dict[str, Any]) -> dict[str, str]:
    """Return params as MLflow keeps them: text as it is, the rest as JSON, and of either its beginning."""
    return {
        key: (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST]
        for key, value in params.items()
    }


def with_used(params: dict[str, str], used: dict[str, str]) -> dict[str, str]:
    """Return params as MLflow keeps them, with the settings that were used."""
    return params | {f"{USED}{name}": value[:LONGEST] for name, value in used.items()}


def values(params: Mapping[str, str]) -> dict[str, str | float]:
    """Return params to compare: code of another time may have written 10 where today's writes 10.0."""
    return {name: _value(text) for name, text in params.items()}


def _value(text: str) -> str | float:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return float(value) if type(value) in (int, float) and math.isfinite(value) else text


def given(run: "Run") -> dict[str, str]:
    """Return those of a run's params that params.yaml gave it."""
    return {name: value for name, value in run.data.params.items() if not name.startswith(USED)}

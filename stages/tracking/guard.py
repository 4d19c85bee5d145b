"""Tracking never costs a training: what keeps an error of the store from the stage."""

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Guard:
    """Tries what may fail with the store at `uri`. It warns of the first error, and tries nothing from then on."""

    def __init__(self, uri: str) -> None:
        self.uri, self.has_failed = uri, False

    def attempt(self, action: Callable[[], T], otherwise: T) -> T:
        """Return what `action` returns, and `otherwise` if it fails or something has failed before."""
        if self.has_failed:
            return otherwise
        try:
            return action()
        except Exception as error:
            self.has_failed = True
            print(
                f"warning: MLflow at {self.uri} failed, so this run is missing or incomplete there; the results are not"
                " affected, and python -m tools.sync brings them there once it is back."
                f" {type(error).__name__}: {error}",
                file=sys.stderr,
            )
            return otherwise

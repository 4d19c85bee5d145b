"""What keeps an error of the store from a sweep."""

from collections.abc import Callable
from typing import TypeVar

from stages.base.text import warn
from stages.tracking.store import Store

T = TypeVar("T")


class Guard:
    """Tries what may fail with a store. It warns of the first error, and tries nothing from then on."""

    def __init__(self, store: Store) -> None:
        self._store, self.has_failed = store, False

    def attempt(self, action: Callable[[], T], otherwise: T) -> T:
        """Return what `action` returns, and `otherwise` if it fails or something has failed before."""
        if self.has_failed:
            return otherwise
        try:
            return action()
        except Exception as error:
            self.has_failed = True
            warn(
                f"warning: MLflow at {self._store.name} failed, so this run is missing or incomplete there; the results"
                f" are not affected, and python -m tools.sync brings them there once it is back."
                f" {self._store.why(error)}"
            )
            return otherwise

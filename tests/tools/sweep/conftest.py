"""What the tests of sweeps share."""

from collections.abc import Callable, Sequence

import pytest

from tests.conftest import Project
from tools.sweep.experiments import Description, Experiment


@pytest.fixture(scope="session")
def project(make_project: Callable[[], Project]) -> Project:
    """A copy of the project for all these tests: one that changes its files or experiments undoes that.

    They share its store, too, since to make one takes seconds.
    """
    return make_project()


def experiment(name: str, number: int = 0, overrides: Sequence[str] = (), **values: str) -> Experiment:
    """An experiment that waits."""
    return Experiment(Description(name, "HEAD", b"", list(overrides), {"REPRONET_SWEEP": "test"}), number, values)

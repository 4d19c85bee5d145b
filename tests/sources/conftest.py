"""What the tests of sources share."""

import pytest

from stages.sources import decoding


@pytest.fixture(params=[False, True])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether three processes decode, as they do for large sets, or this one does."""
    if request.param:
        monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 10)
        monkeypatch.setattr(decoding, "cores", lambda: 3)
    return bool(request.param)

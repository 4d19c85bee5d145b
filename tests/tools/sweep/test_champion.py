"""The registry's champion, in a real store: who takes the place, and who does not."""

import pytest

from stages.base.errors import InputError
from tests.conftest import Project
from tools.runs import Runs
from tools.sweep.champion import challenge


@pytest.fixture
def runs(compared: Project, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(compared.root)
    return Runs()


def test_only_a_better_model_takes_the_place(runs: Runs) -> None:
    def challenged(name: str) -> str:
        return challenge(runs, "digits", runs.find(name))

    assert challenged("closed") == "digits@champion is now closed, version 1, its first"
    assert challenged("closed") == "closed is digits@champion already"
    won = challenged("seed-0")
    assert won.startswith("digits@champion is now seed-0, version 2; it was closed. seed-0 against closed: ")
    assert "The difference is real: seed-0 is better (p < 0.05)." in won
    lost = challenged("closed")
    assert lost.startswith("digits@champion stays seed-0. ")
    assert "The difference is real: seed-0 is better" in lost
    assert "No difference can be told (p >= 0.05)." in challenged("seed-1"), "better by chance is not better"
    assert "they were tested on different images" in challenged("others")

    version = runs.client.get_model_version_by_alias("digits", "champion")
    assert (int(version.version), version.run_id) == (2, runs.find("seed-0").id)
    assert len(runs.client.search_model_versions("name = 'digits'")) == 2


def test_names_that_the_registry_refuses(runs: Runs) -> None:
    with pytest.raises(InputError, match="seed-0 cannot be registered as a/b: "):
        challenge(runs, "a/b", runs.find("seed-0"))

"""The registry's champion, in a real store: who takes the place, and who does not."""

import pytest

from stages.command import InputError
from tests.conftest import Project
from tools.champion import challenge
from tools.runs import Store


@pytest.fixture
def store(compared: Project, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(compared.root)
    return Store()


def test_only_a_better_model_takes_the_place(store: Store) -> None:
    def challenged(name: str) -> str:
        return challenge(store, "digits", store.find(name))

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

    version = store.client.get_model_version_by_alias("digits", "champion")
    assert (int(version.version), version.run_id) == (2, store.find("seed-0").id)
    assert len(store.client.search_model_versions("name = 'digits'")) == 2


def test_names_that_the_registry_refuses(store: Store) -> None:
    with pytest.raises(InputError, match="seed-0 cannot be registered as a/b: "):
        challenge(store, "a/b", store.find("seed-0"))

"""Runs are found by their tags, whatever stands in these."""

import pytest

from stages.tracking.search import equals, quoted
from stages.tracking.store import Store

VALUES = [
    "plain",
    "/home/Tom's C# 100%",
    'the "best"',
    """Tom's "best\"""",
    "a' or 'b",
    "back\\slash",
    "two\nlines",
    "`tick`",
    "a -- b /* c",
    "a and b",
    "x_y",
    "xzy",
    "100%",
    "1000",
    "UPPER",
    "upper",
    "ü, 花",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One with a run for each of the values of a tag."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('search')}/mlflow.db", "repronet")
    for value in VALUES:
        store.client().create_run(store.experiment_id, tags={"dvc.exp_name": value, "other": "1"})
    return store


@pytest.mark.parametrize("value", VALUES)
def test_a_tag_is_found_by_its_value_and_by_its_beginning(store: Store, value: str) -> None:
    for conditions in ({"tags": {"dvc.exp_name": value}}, {"prefixes": {"dvc.exp_name": value}}):
        found = [
            run.data.tags["dvc.exp_name"] for run in store.search(**conditions, having=["other"], status="RUNNING")
        ]
        assert found == [value]


def test_beginnings_and_deleted_runs(store: Store) -> None:
    found = {run.data.tags["dvc.exp_name"] for run in store.search(prefixes={"dvc.exp_name": "x"})}
    assert found == {"x_y", "xzy"}
    [run] = store.search(tags={"dvc.exp_name": "plain"})
    assert not store.search(tags={"dvc.exp_name": "plain"}, deleted=True)
    store.client().delete_run(run.info.run_id)
    assert not store.search(tags={"dvc.exp_name": "plain"})
    [deleted] = store.search(tags={"dvc.exp_name": "plain"}, deleted=True)
    store.client().restore_run(deleted.info.run_id)
    assert len(store.search(having=["other"])) == len(VALUES)
    assert not store.search(having=["dvc.baseline_rev"])
    assert not store.search(status="FAILED")


def test_what_cannot_be_quoted_has_no_filter() -> None:
    assert [quoted(value) for value in ("a", "a'b", 'a"b', "a'b\"")] == ["'a'", '"a\'b"', "'a\"b'", ""]
    assert equals("sweep", "a'b\"") == ""
    assert equals("sweep", "it's") == 'tags.`sweep` = "it\'s"'

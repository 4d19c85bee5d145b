"""Streamed shards where something is wrong with what is on this machine: the cache, the table, what users write."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages.base.errors import InputError
from stages.batches.loader import Loader
from stages.batches.prepared import Prepared
from stages.prepare import prepare
from tests.conftest import params_with, wait_until, write_image

CPU = torch.device("cpu")
N_SHARDS = 32


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in 32 shards that are in a folder as storage."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(params_with({"prepare.shard_mb": 0.004, "prepare.shards_to": str(folder / "kept")}).prepare, folder / "set")
    return folder / "set"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRONET_HOME", str(tmp_path / "home"))
    return tmp_path / "home/shards"


def held(cache: Path) -> int:
    return len(list(cache.glob("*.npy")))


def test_what_is_damaged_in_the_cache_is_fetched_again(streamed: Path, cache: Path) -> None:
    expected = Prepared(streamed).split("train", CPU).read(slice(None))
    one, other, empty = sorted(cache.glob("*.npy"))[:3]
    one.write_bytes(one.read_bytes()[:500])
    np.save(other, np.zeros((3, 8, 8), np.uint8))
    empty.write_bytes(b"")
    assert torch.equal(Prepared(streamed).split("train", CPU).read(slice(None)), expected)


def changed(streamed: Path, tmp_path: Path, column: str, value: Any) -> Path:
    """The set with another value in the first two rows of its table."""
    folder = shutil.copytree(streamed, tmp_path / "changed")
    table = pd.read_csv(folder / "shards.csv", dtype=str)
    table.loc[:1, column] = value
    table.to_csv(folder / "shards.csv", index=False)
    return folder


def test_a_shard_that_is_another_than_the_table_says(streamed: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(streamed / "shards.csv")["rows"]
    folder = changed(streamed, tmp_path, "rows", [str(rows[0] + 1), str(rows[1] - 1)])
    with pytest.raises(InputError, match=r"is no shard .*sha256 in shards.csv: dvc pull, or dvc repro -f prepare"):
        Prepared(folder).split("train", CPU).read(slice(None))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sha256", "../../secret", "'../../secret' in shards.csv is no sha256"),
        ("sha256", None, "'' in shards.csv is no sha256"),
        ("rows", None, "is not a prepared set: ValueError"),
        ("file", None, "'' in shards.csv is no file beside it"),
        ("file", "../other.npy", "'../other.npy' in shards.csv is no file beside it"),
        ("file", "s3://key:word@bucket/a.npy", r"shards.csv: 's3://\*\*\*@bucket' holds a key"),
        ("file", "simplecache::s3://bucket/a.npy", "shards.csv: 'simplecache::s3://bucket'; accepted"),
    ],
)
def test_a_table_is_not_trusted(streamed: Path, tmp_path: Path, column: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prepared(changed(streamed, tmp_path, column, value))


def test_what_is_in_memory_is_read_from_there(streamed: Path, cache: Path) -> None:
    split = Prepared(streamed).split("test", CPU)
    expected = split.take(slice(None))
    shutil.rmtree(cache)
    assert torch.equal(split.read(torch.arange(3, 9)), expected[3:9])
    assert not cache.exists()


def test_what_has_made_room_is_fetched_ahead_again(streamed: Path, cache: Path) -> None:
    split = Prepared(streamed).split("train", CPU)
    for _ in range(2):
        split.ahead(slice(0, 20))
        wait_until(lambda: held(cache) == 1)
        shutil.rmtree(cache)


def test_the_first_shards_of_an_epoch_are_fetched_in_the_one_before(streamed: Path, cache: Path) -> None:
    split = Prepared(streamed).split("train", CPU)
    loader = Loader(split, 64, 0)
    n_batches = len(loader)
    for number, _ in enumerate(loader.epoch(1)):
        if number == n_batches - 5:  # of those of the last eight shards, which are open
            wait_until(lambda: held(cache) == N_SHARDS)
            shutil.rmtree(cache)
    first = loader._order(loader._generator(2))[:64]
    assert split.shards is not None
    digests = pd.read_csv(streamed / "shards.csv")["sha256"][split.shards[first].unique().numpy()]
    wait_until(lambda: {file.stem for file in cache.glob("*.npy")} >= set(digests))


@pytest.mark.parametrize("where", ["set", "set/inside", "raw/inside", "home/shards"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_storage_that_would_be_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, form: str
) -> None:
    monkeypatch.setenv("REPRONET_HOME", str(tmp_path / "home"))
    write_image(tmp_path / "raw/a/1.png", 1)
    values = {
        "source": "folder",
        "path": str(tmp_path / "raw"),
        "shard_mb": 1,
        "shards_to": form.format(tmp_path / where),
    }
    with pytest.raises(
        InputError, match=rf"prepare.shards_to: '{tmp_path}/{where}' and .* should not contain each other"
    ):
        prepare(params_with({f"prepare.{name}": value for name, value in values.items()}).prepare, tmp_path / "set")

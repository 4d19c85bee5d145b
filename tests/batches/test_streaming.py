"""Shards in object storage: what is trained on them, by a real server that speaks as S3 does."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
import torch
from s3fs import S3FileSystem
from torch import nn

from stages.base.errors import InputError
from stages.base.storage import Cache, store
from stages.batches.loader import Loader
from stages.batches.prepared import Prepared
from stages.batches.shards import OPEN
from stages.evaluate import evaluate
from stages.nets.prediction import predict
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, Project, clean_environment, params_with, wait_until
from tests.servers import BUCKET, s3

CPU = torch.device("cpu")
SHARDS = {"prepare.shard_mb": 0.004}  # 32
PLACE = f"s3://{BUCKET}/digits"
LIMIT = 100_000  # bytes of the cache, of 115,000 in all shards


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3() as environment:
        yield environment


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "prepared"
    prepare(params_with(SHARDS).prepare, folder)
    return folder


@pytest.fixture(scope="module")
def remote(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "prepared"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        prepare(params_with(SHARDS | {"prepare.shards_to": PLACE}).prepare, folder)
    return folder


@pytest.fixture(autouse=True)
def cache(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that has no room for all shards."""
    for name, value in {
        **server,
        "REPRONET_HOME": str(tmp_path / "home"),
        "REPRONET_CACHE_GB": str(LIMIT / 1e9),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stages.base.storage.WAITS", (0.1, None))
    return tmp_path / "home/shards"


def bucket(server: dict[str, str]) -> Any:
    """The bucket, as boto3 has it."""
    return boto3.resource("s3", endpoint_url=server["AWS_ENDPOINT_URL"]).Bucket(BUCKET)


def made(prepared: Path, folder: Path, changes: dict[str, Any]) -> list[bytes]:
    """Weights, history and results of a training of two epochs."""
    params = params_with({"train.epochs": 2} | changes)
    weights, history = folder / "net.safetensors", folder / "train.csv"
    train(params.train, prepared, weights, history, Tracker.off())
    evaluate(params, weights, prepared, history, folder / "evaluate.json", folder / "plots", Tracker.off())
    predictions, page = folder / "plots/predictions.csv", folder / "plots/mistakes.html"
    return [file.read_bytes() for file in (weights, history, folder / "evaluate.json", predictions, page)]


def test_prepare_leaves_small_files_and_all_shards_in_storage(
    local: Path, remote: Path, server: dict[str, str], tmp_path: Path
) -> None:
    assert sorted(path.name for path in remote.iterdir()) == ["dataset.json", "manifest.parquet", "shards.csv"]
    for name in ("dataset.json", "manifest.parquet"):
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    ours, theirs = (pd.read_csv(folder / "shards.csv") for folder in (local, remote))
    assert theirs["file"].tolist() == [f"{PLACE}/{digest}.npy" for digest in ours["sha256"]]
    stored = {each.key: each.get()["Body"].read() for each in bucket(server).objects.filter(Prefix="digits/")}
    files = zip(ours["file"], ours["sha256"], strict=True)
    assert stored == {f"digits/{digest}.npy": (local / file).read_bytes() for file, digest in files}
    # Once more, nothing is sent, and the files are the same.
    before = {each.key: each.last_modified for each in bucket(server).objects.all()}
    prepare(params_with(SHARDS | {"prepare.shards_to": PLACE}).prepare, tmp_path / "prepared")
    assert {each.key: each.last_modified for each in bucket(server).objects.all()} == before
    assert (tmp_path / "prepared/shards.csv").read_bytes() == (remote / "shards.csv").read_bytes()


CROP = {"train.transforms.train": [{"RandomCrop": {"size": 8, "padding": 1}}]}


@pytest.mark.parametrize(
    "changes", [{}, {"train.workers": 2}, CROP | {"train.workers": 2, "train.balance": "sampling"}]
)
def test_a_streamed_training_has_the_weights_of_local_shards(
    local: Path, remote: Path, cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    expected = made(local, tmp_path / "local", changes)
    largest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.001):
            sizes = []
            for file in cache.glob("*"):
                try:
                    sizes.append(file.stat().st_size)
                except FileNotFoundError:  # it has just made room
                    continue
            largest = max(largest, sum(sizes))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert made(remote, tmp_path / "remote", changes) == expected
    finally:
        ended.set()
        watching.join()
    assert largest > 60_000
    # What several fetch at once is not there when each makes room.
    assert largest <= LIMIT + 6 * 5_000
    assert list(cache.glob("*.partial")) == []


def test_the_next_group_of_shards_is_fetched_meanwhile(remote: Path, cache: Path) -> None:
    epoch = Loader(Prepared(remote).split("train", CPU), 64, 0).epoch(1)  # workers would be ahead by themselves
    list(islice(epoch, 4))  # of 314 images that eight shards hold
    wait_until(lambda: len(list(cache.glob("*.npy"))) >= 2 * OPEN)


def test_validation_is_fetched_once(local: Path, remote: Path, cache: Path) -> None:
    pixels = nn.Sequential(nn.Flatten())
    expected = predict(pixels, Prepared(local).split("valid", CPU))
    split = Prepared(remote).split("valid", CPU)
    assert torch.equal(predict(pixels, split), expected)
    shutil.rmtree(cache)
    assert torch.equal(predict(pixels, split), expected)
    assert not cache.exists()


@pytest.mark.slow
def test_a_streamed_training_in_two_processes(local: Path, remote: Path, project: Project, cache: Path) -> None:
    for old, new in {"epochs: 30": "epochs: 2", "processes: 1": "processes: 2", "threads: 2": "threads: 1"}.items():
        project.edit("params.yaml", f"  {old} ", f"  {new} ")
    for name, prepared in {"local": local, "remote": remote}.items():
        project("python", "-m", "stages.train", str(prepared), f"{name}/net.safetensors", f"{name}/train.csv")
    assert list(cache.glob("*.npy"))
    for file in ("net.safetensors", "train.csv"):
        assert (project.root / "local" / file).read_bytes() == (project.root / "remote" / file).read_bytes()


def test_two_processes_share_a_cache(local: Path, remote: Path, cache: Path) -> None:
    code = f"""
import torch
from pathlib import Path
from stages.batches.prepared import Prepared
split = Prepared(Path({str(remote)!r})).split("train", torch.device("cpu"))
for _ in range(5):
    images = split.read(slice(None))
print(images.long().sum().item())
"""
    start = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=clean_environment()) for _ in range(2)
    ]
    total = Prepared(local).split("train", CPU).read(slice(None)).long().sum().item()
    assert [process.communicate(timeout=100)[0] for process in both] == [f"{total}\n"] * 2
    assert sum(file.stat().st_size for file in cache.iterdir()) <= LIMIT + 6 * 5_000


def test_what_is_lost_or_damaged_is_named_and_can_be_put_back(
    remote: Path, server: dict[str, str], tmp_path: Path
) -> None:
    shards = pd.read_csv(remote / "shards.csv")
    place, digest = shards["file"][7], shards["sha256"][7]
    thing = bucket(server).Object(place.removeprefix(f"s3://{BUCKET}/"))
    content = thing.get()["Body"].read()
    split = Prepared(remote).split("train", CPU)
    try:
        thing.delete()
        with pytest.raises(InputError, match=rf"{place} cannot be fetched: FileNotFoundError: .*dvc repro -f prepare"):
            split.read(slice(None))
        thing.put(Body=content[:-1] + b"x")
        with pytest.raises(
            InputError, match=rf"{place} cannot be fetched: ValueError: its sha256 is [0-9a-f]+, should"
        ):
            split.read(slice(None))
        shard = tmp_path / "again.npy"
        shard.write_bytes(content)
        assert store(shard, PLACE, digest) == place
        assert thing.get()["Body"].read() == content
    finally:
        thing.put(Body=content)
    split.read(slice(None))


def test_a_server_that_is_away_is_said_in_time(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()  # s3fs keeps the connections of this process
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"{PLACE}/[0-9a-f]+.npy cannot be fetched: .*127\.0\.0\.1:9"):
        Prepared(remote).split("train", CPU).read(slice(10))
    S3FileSystem.clear_instance_cache()
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("0", "REPRONET_CACHE_GB: '0', should be a number above 0, of gigabytes"),
        ("much", "REPRONET_CACHE_GB: 'much', should be a number above 0"),
        ("0.00003", r"REPRONET_CACHE_GB: 3e-05, should be [0-9.e-]+ or more, for 16 shards"),
    ],
)
def test_a_cache_without_room_is_refused(
    remote: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setenv("REPRONET_CACHE_GB", limit)
    with pytest.raises(InputError, match=message):
        Prepared(remote)


@pytest.mark.parametrize(
    ("to", "mb", "message"),
    [
        ("storage", 1, "prepare.shards_to: 'storage'; accepted: a URL such as s3://bucket/folder, or the whole path"),
        ("s3://key:secret@bucket/x", 1, r"prepare.shards_to: 's3://\*\*\*@bucket/x' holds a key"),
        ("s4://bucket/x", 1, "s4://bucket/x: Protocol not known: s4"),
        (PLACE, None, "prepare.shards_to: '.*' is for shards, with prepare.shard_mb"),
        ("s3://nobody/x", 1, "s3://nobody/x/[0-9a-f]+.npy cannot be written: FileNotFoundError"),
    ],
)
def test_places_that_cannot_be_used(tmp_path: Path, to: str, mb: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        prepare(params_with({"prepare.shard_mb": mb, "prepare.shards_to": to}).prepare, tmp_path / "prepared")
    assert "secret" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_a_folder_is_storage_too(local: Path, tmp_path: Path) -> None:
    prepare(params_with(SHARDS | {"prepare.shards_to": f"{tmp_path}/shared/digits"}).prepare, tmp_path / "prepared")
    assert len(list((tmp_path / "shared/digits").iterdir())) == 32
    one, other = (Prepared(folder).split("valid", CPU) for folder in (local, tmp_path / "prepared"))
    assert torch.equal(one.take(slice(None)), other.take(slice(None)))


def test_the_least_recently_used_makes_room_and_what_is_half_fetched_goes(tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path / "cache", 2_500), tmp_path / "kept"
    places = {}
    for number in range(4):
        np.save(tmp_path / "one.npy", np.full(872, number, np.uint8))  # 1,000 bytes with its head
        digest = hashlib.sha256((tmp_path / "one.npy").read_bytes()).hexdigest()
        places[digest] = store(tmp_path / "one.npy", str(kept), digest)
    (tmp_path / "cache").mkdir()
    for name in (".old.partial", ".new.partial"):
        (tmp_path / "cache" / name).touch()
    os.utime(tmp_path / "cache/.old.partial", (0, 0))
    first, second, third, fourth = places

    def held(digest: str) -> set[str]:
        cache.fetched(places[digest], digest, 1_000)
        time.sleep(0.02)
        return {file.stem for file in (tmp_path / "cache").glob("*.npy")}

    assert held(first) == {first}
    assert held(second) == {first, second}
    assert held(first) == {first, second}
    assert held(third) == {first, third}, "the second was not used since"
    assert held(fourth) == {third, fourth}
    assert [file.name for file in (tmp_path / "cache").glob("*.partial")] == [".new.partial"]

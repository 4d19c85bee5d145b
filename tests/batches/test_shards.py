"""Local shards: read as one array, in an order that leaves those of one group for the next, trained on, and broken."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.base.errors import InputError
from stages.batches.loader import Loader
from stages.batches.prepared import Prepared
from stages.batches.shards import OPEN, Shards, grouped
from stages.evaluate import evaluate
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import params_with

CPU = torch.device("cpu")
N_SHARDS = 32


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in 32 shards."""
    folder = tmp_path_factory.mktemp("digits") / "prepared"
    prepare(params_with({"prepare.shard_mb": 0.004}).prepare, folder)
    assert len(list(folder.glob("images-*.npy"))) == N_SHARDS
    return folder


def made(prepared: Path, folder: Path, **changes: object) -> tuple[bytes, bytes]:
    """Weights and history of a training of two epochs."""
    params = params_with({"train.epochs": 2} | {f"train.{name}": value for name, value in changes.items()})
    train(params.train, prepared, folder / "net.safetensors", folder / "train.csv", Tracker.off())
    return (folder / "net.safetensors").read_bytes(), (folder / "train.csv").read_bytes()


def test_the_images_are_those_of_one_file(digits: Path, sharded: Path) -> None:
    whole, data = Prepared(digits), Prepared(sharded)
    for name in ("train", "valid", "test"):
        one, several = whole.split(name, CPU), data.split(name, CPU)
        places = {source: place for place, source in enumerate(data.sources(name))}
        same = torch.tensor([places[source] for source in whole.sources(name)])
        assert sorted(same.tolist()) == list(range(len(one.labels)))
        assert torch.equal(several.read(same), one.read(slice(None)))
        assert torch.equal(several.labels[same], one.labels)
        again = pickle.loads(pickle.dumps(several))
        assert torch.equal(again.read(slice(None)), several.read(slice(None)))
    assert (data.mean, data.std, data.sizes, data.counts) == (whole.mean, whole.std, whole.sizes, whole.counts)


def test_an_epoch_goes_through_groups_of_shards(sharded: Path) -> None:
    split = Prepared(sharded).split("train", CPU)
    assert split.shards is not None
    generator = torch.Generator().manual_seed(3)
    before = torch.randperm(len(split.labels), generator=generator)
    order = grouped(before, split.shards, generator)
    assert order.sort().values.tolist() == list(range(len(split.labels)))
    shards = split.shards[order].tolist()
    first = list(dict.fromkeys(shards))  # in the order in which they come up
    assert len(first) == N_SHARDS
    for at in range(0, N_SHARDS, OPEN):
        group = first[at : at + OPEN]
        places = [place for place, shard in enumerate(shards) if shard in group]
        assert places == list(range(places[0], places[-1] + 1)), "no other shard comes between"
        inside = [place for place in before.tolist() if split.shards[place] in group]
        assert [order[place] for place in places] == inside
    # Few shards are one group: nothing is drawn, and the order is that of one file.
    state = generator.get_state()
    assert grouped(before, split.shards % OPEN, generator) is before
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("kind", [{}, {"is_balanced": True}, {"overfit": 100}])
def test_the_order_is_one_for_any_number_of_workers_and_from_any_start(sharded: Path, kind: dict[str, Any]) -> None:
    split = Prepared(sharded).split("train", CPU)

    def batches(workers: int, seed: int, epoch: int, start: int = 0, **options: Any) -> list[list[tuple[int, ...]]]:
        loader = Loader(split, 64, seed, workers=workers, **kind, **options)
        found = loader.epoch(epoch, start)
        return [
            [(label, *image) for image, label in zip(images.flatten(1).tolist(), labels.tolist(), strict=True)]
            for images, labels in found
        ]

    expected = batches(0, 1, 2)
    assert len(expected) == 20
    assert batches(2, 1, 2) == expected
    assert batches(0, 1, 2, start=7) == batches(2, 1, 2, start=7) == expected[7:]
    for workers in (0, 2):
        parts = [batches(workers, 1, 2, part=lambda indices, rank=rank: indices[rank::2]) for rank in range(2)]
        both = [sorted([*one, *other]) for one, other in zip(*parts, strict=True)]
        assert both == [sorted(batch) for batch in expected], "two processes share out the same batches"
    assert batches(0, 2, 2) != expected
    assert (batches(0, 1, 3) == expected) == ("overfit" in kind)
    assert split.shards is not None
    loader = Loader(split, 64, 1, **kind)
    order = loader._order(torch.Generator().manual_seed(0))
    assert len(split.shards[order[:100]].unique()) <= OPEN


def test_a_training_on_shards(sharded: Path, tmp_path: Path) -> None:
    params = {"epochs": 6, "transforms.train": [{"RandomCrop": {"size": 8, "padding": 1}}]}
    one = made(sharded, tmp_path / "one", **params)
    assert made(sharded, tmp_path / "two", workers=2, **params) == one
    assert made(sharded, tmp_path / "other", seed=1, **params) != one
    results = tmp_path / "evaluate.json"
    weights, history = tmp_path / "one/net.safetensors", tmp_path / "one/train.csv"
    evaluate(params_with({}), weights, sharded, history, results, tmp_path / "plots", Tracker.off())
    assert '"accuracy": 0.9' in results.read_text()


def test_a_small_set_has_one_shard_in_the_order_of_its_source(tmp_path: Path) -> None:
    prepare(params_with({"prepare.shard_mb": 1}).prepare, tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("images*")] == ["images-00000.npy"]
    data = Prepared(tmp_path / "one")
    split = data.split("train", CPU)
    assert data.sources("test") == sorted(data.sources("test"), key=lambda name: int(name.split("/")[1]))
    labels = torch.cat([labels for _, labels in Loader(split, 64, 0).epoch(1)])
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(labels, split.labels[torch.randperm(len(split.labels), generator=generator)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "prepared is not a prepared set: FileNotFoundError: .*images-00003.npy"),
        (lambda file: file.write_bytes(file.read_bytes()[:900]), "images-00003.npy has 900 bytes, too few for"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "images-00003.npy is no shard .*dvc pull, or make it"),
        (
            lambda file: np.save(file, np.zeros((99, 8, 8))),
            "images-00003.npy is no shard .*: float64 .* should be uint8",
        ),
        (
            lambda file: np.save(file, np.array([{}] * 4000), allow_pickle=True),
            "images-00003.npy is no shard .*Python objects",
        ),
    ],
)
def test_a_broken_shard_is_named(sharded: Path, tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    folder = shutil.copytree(sharded, tmp_path / "prepared")
    change(folder / "images-00003.npy")
    with pytest.raises(InputError, match=message):
        Prepared(folder).split("train", CPU).read(slice(None))


@pytest.mark.parametrize("name", ["shards.csv", "manifest.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1{}"])
def test_an_incomplete_folder_is_named(sharded: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = shutil.copytree(sharded, tmp_path / "prepared")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="prepared is not a prepared set"):
        Prepared(folder)


def test_hardly_any_file_is_open_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.npy" for number in range(100)]
    for number, file in enumerate(files):
        np.save(file, np.full((1, 2, 2), number, np.uint8))
    shards = Shards([str(file) for file in files], [1] * 100, [""] * 100, (2, 2))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert shards.take(np.arange(100))[:, 0, 0].tolist() == list(range(100))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + OPEN

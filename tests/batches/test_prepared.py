import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from stages.base.errors import InputError
from stages.batches.loader import Loader
from stages.batches.normalise import Normalise
from stages.batches.prepared import Prepared, Split
from stages.nets.prediction import BATCH, BATCH_VALUES, predict

CPU = torch.device("cpu")


def split_of(n: int) -> Split:
    """n images of 2x2 whose pixels all are the image's number, as its label is, at even rows of the array."""
    images = np.repeat(np.arange(2 * n, dtype=np.uint8) // 2, 4).reshape(2 * n, 2, 2)
    return Split(images, labels=torch.arange(n), rows=2 * torch.arange(n))


def test_splits_are_those_of_the_manifest(digits: Path) -> None:
    data = Prepared(digits)
    splits = {name: data.split(name, CPU) for name in ("train", "valid", "test")}
    assert {name: len(split.labels) for name, split in splits.items()} == data.sizes
    assert sorted(torch.cat([split.rows for split in splits.values()]).tolist()) == list(range(1797))
    images = np.load(digits / "images.npy")
    for split in splits.values():
        assert torch.equal(split.read(slice(None)), torch.from_numpy(images[split.rows]))
        assert torch.equal(split.take(torch.tensor([3, 1])), torch.from_numpy(images[split.rows[[3, 1]]]))


def test_images_stay_on_disk(digits: Path) -> None:
    split = Prepared(digits).split("train", CPU)
    assert isinstance(split.images.base, np.memmap)
    assert not split.images.flags.writeable


def test_normalised_training_images_have_mean_0_and_deviation_1(digits: Path) -> None:
    data = Prepared(digits)
    images = Normalise(data.mean, data.std)(data.split("train", CPU).read(slice(None)))
    assert images.shape == (data.sizes["train"], 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_grayscale_images_get_their_channel() -> None:
    images = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-1.0, 3.0], [-0.2, 0.6]]]])
    assert torch.allclose(Normalise([0.25], [0.25])(images), expected)
    assert torch.equal(Normalise([0.25], [0.25])(images.unsqueeze(1)), Normalise([0.25], [0.25])(images))


def test_colour_channels_have_their_own_mean_and_deviation() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    normalised = Normalise([0.5, 0.0, 1.0], [0.5, 0.5, 0.5])(images)
    assert normalised[0, :, 0, 0].tolist() == pytest.approx([1, 2, 0])


def test_floats_from_0_to_1_are_normalised_as_bytes_are() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    normalise = Normalise([0.25], [0.5])
    assert torch.allclose(normalise(images / 255), normalise(images), atol=1e-6)


def test_flatten_keeps_the_batch() -> None:
    assert torch.equal(
        torch.arange(6.0).view(1, 2, 3).flatten(start_dim=1), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    )


def test_unsqueeze_makes_a_column() -> None:
    assert torch.equal(torch.tensor([1, 2, 3, 4]).unsqueeze(1), torch.tensor([[1], [2], [3], [4]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_image_once_and_its_label_with_it(workers: int) -> None:
    loader = Loader(split_of(10), batch_size=4, seed=0, workers=workers)
    batches = list(loader.epoch(1))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(loader) == 3
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(10))
    assert torch.equal(torch.cat([images for images, _ in batches])[:, 0, 0].long(), labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_from_seed_and_epoch_alone(workers: int) -> None:
    loaders = [Loader(split_of(50), 8, seed, workers=workers) for seed in range(3)]

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(epoch)  # the global generator plays no part
        return torch.cat([labels for _, labels in loaders[seed].epoch(epoch)]).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) == torch.randperm(50, generator=torch.Generator().manual_seed(1_000_003 + 2)).tolist()
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loading_draws_nothing_from_the_global_generator(workers: int) -> None:
    before = torch.get_rng_state()
    list(Loader(split_of(9), 4, 0, noise, workers).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def noise(images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return images + torch.tensor(seeds)[:, None, None] % 100, labels


def test_each_place_has_a_seed_that_follows_from_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int, workers: int) -> list[int]:
        return torch.cat([images for images, _ in Loader(split_of(20), 8, seed, noise, workers).epoch(epoch)]).tolist()

    assert drawn(0, 1, 0) == drawn(0, 1, 1) == drawn(0, 1, 2)
    assert len({str(drawn(seed, epoch, 0)) for seed, epoch in ((0, 1), (0, 2), (1, 1))}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_early_leaves_nothing_behind(workers: int) -> None:
    loader = Loader(split_of(40), 4, 0, workers=workers)
    next(loader.epoch(1))
    whole = torch.cat([labels for _, labels in loader.epoch(2)]).tolist()
    assert whole == torch.cat([labels for _, labels in Loader(split_of(40), 4, 0).epoch(2)]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_transforms_refuse_is_said_without_a_traceback(workers: int) -> None:
    def refuse(*_: object) -> tuple[Tensor, Tensor]:
        raise InputError("train.transforms.train: no")

    with pytest.raises(InputError, match=r"^train\.transforms\.train: no$"):
        list(Loader(split_of(9), 4, 0, refuse, workers).epoch(1))


class Sum(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert len(images) * images[0].numel() <= BATCH_VALUES
        assert len(images) <= BATCH
        return images.float().flatten(1).sum(1)[:, None]


@pytest.mark.parametrize("side", [2, 100])
def test_scores_are_the_same_in_any_number_of_batches(side: int) -> None:
    images = torch.randint(256, (2 * BATCH + 1, side, side), dtype=torch.uint8).numpy()
    index = torch.arange(0, len(images), 2)
    split = Split(images, labels=torch.zeros_like(index), rows=index)
    assert torch.equal(predict(Sum(), split)[:, 0], torch.from_numpy(images)[index].float().sum((1, 2)))


def test_images_that_transforms_enlarge_are_scored_fewer_at_once() -> None:
    split = split_of(100)
    enlarging = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Upsample(scale_factor=300))
    assert predict(nn.Sequential(enlarging, Sum()), split)[5].item() == 4 * 300**2 * 5


@pytest.mark.parametrize("name", ["dataset.json", "images.npy", "manifest.csv"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"{}"])
def test_an_incomplete_folder_is_named(digits: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="prepared is not a prepared set"):
        Prepared(folder)


def test_pickled_arrays_are_refused(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    np.save(folder / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a prepared set"):
        Prepared(folder)


def test_rejected_images_are_not_in_the_manifest(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    manifest = pd.read_csv(folder / "manifest.csv").drop(index=[0, 5])
    manifest.to_csv(folder / "manifest.csv", index=False)
    data = Prepared(folder)
    assert sum(len(data.split(name, CPU).labels) for name in data.sizes) == 1795


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1797,test,0,none", r"index from 0 to 1797 in manifest\.csv, 1797 rows in images\.npy"),
        ("-1,test,0,none", "index from -1 to 1796"),
        ("5,test,0,none", r"1 rows of images\.npy stand in manifest\.csv more than once"),
        ("x,test,0,none", "not a prepared set: ValueError"),
    ],
)
def test_a_manifest_of_other_images_is_named(digits: Path, tmp_path: Path, row: str, message: str) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    with (folder / "manifest.csv").open("a") as manifest:
        manifest.write(f"{row}\n")
    with pytest.raises(InputError, match=message):
        Prepared(folder)


def test_labels_without_a_class_are_named(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    manifest = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(manifest.replace("0,train,0,", "0,train,10,", 1))
    with pytest.raises(InputError, match=r"label from 0 to 10 in manifest\.csv, 10 classes in dataset\.json"):
        Prepared(folder)


@pytest.mark.parametrize("images", [np.zeros((1797, 9, 9), np.uint8), np.zeros((1797, 8, 8), np.float32)])
def test_images_of_another_kind_are_named(digits: Path, tmp_path: Path, images: np.ndarray) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    np.save(folder / "images.npy", images)
    with pytest.raises(InputError, match=r"in images\.npy, of uint8 \(8, 8\) in dataset\.json"):
        Prepared(folder)


def test_digests_differ_between_splits(digits: Path) -> None:
    facts = json.loads((digits / "dataset.json").read_text())
    assert len(set(facts["sha256"].values())) == 3

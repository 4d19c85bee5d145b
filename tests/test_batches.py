import json
import shutil
from pathlib import Path

import pytest
import torch

from stages.batches import SCORING_BATCH, Normalise, Prepared, Split, scores, shuffled
from stages.command import InputError

CPU = torch.device("cpu")


def split_of(n: int) -> Split:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1).expand(n, 2, 2).contiguous()
    return Split(images, labels=torch.arange(n), index=torch.arange(n))


def test_splits_are_those_of_the_manifest(digits: Path) -> None:
    data = Prepared(digits)
    splits = {name: data.split(name, CPU) for name in ("train", "valid", "test")}
    assert {name: len(split.labels) for name, split in splits.items()} == data.sizes
    assert sorted(torch.cat([split.index for split in splits.values()]).tolist()) == list(range(1797))
    assert splits["test"].images.shape == (data.sizes["test"], 8, 8)
    assert splits["test"].images.dtype == torch.uint8


def test_normalised_training_images_have_mean_0_and_deviation_1(digits: Path) -> None:
    data = Prepared(digits)
    images = Normalise(data.mean, data.std)(data.split("train", CPU).images)
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


def test_an_epoch_has_every_image_once_and_its_label_with_it() -> None:
    batches = list(shuffled(split_of(10), batch_size=4, seed=0, epoch=1))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(10))
    assert torch.equal(torch.cat([images for images, _ in batches])[:, 0, 0].long(), labels)


def test_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(epoch)  # the global generator plays no part
        return torch.cat([labels for _, labels in shuffled(split_of(50), 8, seed, epoch)]).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_scores_are_the_same_in_any_number_of_batches() -> None:
    class Sum(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert len(images) <= SCORING_BATCH
            return images.float().sum((1, 2))[:, None]

    images = torch.randint(256, (2 * SCORING_BATCH + 1, 2, 2), dtype=torch.uint8)
    assert torch.equal(scores(Sum(), images)[:, 0], images.float().sum((1, 2)))


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
    import numpy as np

    folder = shutil.copytree(digits, tmp_path / "prepared")
    np.save(folder / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a prepared set"):
        Prepared(folder)


def test_a_manifest_of_other_images_is_named(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "prepared")
    with (folder / "manifest.csv").open("a") as manifest:
        manifest.write("1797,test,0,none\n")
    with pytest.raises(InputError, match=r"1798 rows in manifest\.csv, 1797 in images\.npy"):
        Prepared(folder)


def test_digests_differ_between_splits(digits: Path) -> None:
    facts = json.loads((digits / "dataset.json").read_text())
    assert len(set(facts["sha256"].values())) == 3

"""The folder that prepare writes, as training reads it, and what is said of a broken one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages.base.errors import InputError
from stages.base.files import write_csv
from stages.batches.prepared import Prepared

CPU = torch.device("cpu")


def test_splits_are_those_of_the_manifest(digits: Path) -> None:
    data = Prepared(digits)
    splits = {name: data.split(name, CPU) for name in ("train", "valid", "test")}
    assert {name: len(split.labels) for name, split in splits.items()} == data.sizes
    assert sorted(torch.cat([split.rows for split in splits.values()]).tolist()) == list(range(1797))
    images = np.load(digits / "images.npy")
    for split in splits.values():
        assert torch.equal(split.read(slice(None)), torch.from_numpy(images[split.rows]))
        assert torch.equal(split.take(torch.tensor([3, 1])), torch.from_numpy(images[split.rows[[3, 1]]]))


def test_images_are_called_what_the_manifest_calls_them(digits: Path, colours: Path, tmp_path: Path) -> None:
    data = Prepared(digits)
    assert data.sources("test") == [f"digits/{row}" for row in data.split("test", CPU).rows]
    assert Prepared(colours).sources("test") == [f"images.npy/{row}" for row in range(50, 60)]  # its manifest has none

    folder = shutil.copytree(colours, tmp_path / "prepared")
    manifest = pd.read_csv(folder / "manifest.csv").assign(source="")
    names = ["007", "NA", "=1+1.png", "a,b.png", '"', "'a", "写真.png", " a", "1e5", ""]
    manifest.loc[50:, "source"] = names
    write_csv(folder / "manifest.csv", manifest)
    assert Prepared(folder).sources("test") == names


def test_images_stay_on_disk(digits: Path) -> None:
    split = Prepared(digits).split("train", CPU)
    assert isinstance(split.images, np.ndarray)
    assert isinstance(split.images.base, np.memmap)
    assert not split.images.flags.writeable


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
    info = json.loads((digits / "dataset.json").read_text())
    assert len(set(info["sha256"].values())) == 3

"""Arrays for processes that are no forks: as the file that they map, or as they are."""

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from stages.base.shared import Shared
from stages.batches.prepared import Prepared


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_maps_a_file_is_sent_as_its_name(tmp_path: Path, mode: Literal["r", "r+"]) -> None:
    np.save(tmp_path / "a.npy", np.arange(100_000, dtype=np.uint8).reshape(1000, 10, 10))
    array = np.load(tmp_path / "a.npy", mmap_mode=mode)
    for one in (array, np.asarray(array)):
        sent = pickle.dumps(Shared(one))
        assert len(sent) < 1000
        there = pickle.loads(sent).array
        assert np.array_equal(there, array)
        assert there.flags.writeable == (mode == "r+")
    if mode == "r+":
        there[7] = 9
        assert (array[7] == 9).all()


def test_anything_else_is_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(80, dtype=np.uint8).reshape(20, 2, 2))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for array in (
        mapped[5:8],
        mapped[::2],
        mapped[::-1],
        mapped.T,
        mapped.reshape(80),
        mapped.view("i1"),
        mapped.copy(),
    ):
        shared = Shared(array)
        assert shared.file is None
        assert np.array_equal(pickle.loads(pickle.dumps(shared)).array, array)


def test_a_split_is_sent_without_its_images(digits: Path) -> None:
    split = Prepared(digits).split("train", torch.device("cpu"))
    sent = pickle.dumps(split)
    assert isinstance(split.images, np.ndarray)
    assert len(sent) < split.images.nbytes / 3
    there = pickle.loads(sent)
    assert torch.equal(there.read(slice(0, 9)), split.read(slice(0, 9)))
    assert torch.equal(there.labels, split.labels)

"""Shards as prepare writes them: which image is in which, and what a small change touches."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.base.files import sha256
from stages.prepare import prepare
from stages.sources.sharding import layout
from tests.conftest import params_with, write_image

SHARDS = {"prepare.source": "folder", "prepare.shard_mb": 0.001}  # of 8x8: 15 images a shard


def prepared(root: Path, raw: Path) -> dict[str, bytes]:
    """The files of the prepared set of a folder of images."""
    prepare(params_with(SHARDS | {"prepare.path": str(raw)}).prepare, root)
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_the_shard_follows_from_the_name_and_a_larger_set_cuts_each_in_two() -> None:
    names = [f"cats/{number:04}.png" for number in range(1_000)]
    few, many = layout(names, 1_000, 0.25), layout(names, 1_000, 0.125)
    assert (len(few.rows), len(many.rows)) == (4, 8)
    assert few.rows.sum() == many.rows.sum() == 1_000
    assert np.array_equal(many.rows.reshape(4, 2).sum(1), few.rows)
    assert np.array_equal(many.places, few.places) is False  # in a shard they are in the order of the source
    shards = np.searchsorted(few.rows.cumsum(), few.places, side="right")
    # The first two bits of sha256, which are 91…, 29… and 1f… (printf cats/0000.png | sha256sum)
    assert shards[:3].tolist() == [2, 0, 0]
    assert np.array_equal(layout(names[1:], 1_000, 0.25).rows, few.rows - np.eye(4, dtype=int)[shards[0]])
    one = layout(names, 1_000, None)
    assert one.places.tolist() == list(range(1_000))
    assert one.rows.tolist() == [1_000]


def test_one_more_image_changes_one_shard(tmp_path: Path) -> None:
    for number in range(100):
        write_image(tmp_path / f"raw/{'ab'[number % 2]}/{number}.png", number)
    before = prepared(tmp_path / "one", tmp_path / "raw")
    assert prepared(tmp_path / "two", tmp_path / "raw") == before
    write_image(tmp_path / "raw/a/new.png", 1_000)
    after = prepared(tmp_path / "two", tmp_path / "raw")
    shards = [name for name in before if name.startswith("images-")]
    assert len(shards) == 8
    assert after.keys() == before.keys() == {*shards, "shards.csv", "manifest.parquet", "dataset.json"}
    [changed] = [name for name in shards if after[name] != before[name]]
    assert len(after[changed]) == len(before[changed]) + 64
    (tmp_path / "raw/a/new.png").unlink()
    assert prepared(tmp_path / "two", tmp_path / "raw") == before


def test_shards_hold_the_images_of_one_file(tmp_path: Path) -> None:
    for number in range(100):
        write_image(tmp_path / f"raw/{'ab'[number % 2]}/{number}.png", number, mode="RGB" if number == 99 else "L")
    (tmp_path / "raw/a/98.png").write_bytes(b"no image")
    values = {"prepare.path": str(tmp_path / "raw"), "prepare.on_bad": "skip"}
    prepare(params_with(SHARDS | values | {"prepare.shard_mb": None}).prepare, tmp_path / "whole")
    prepare(params_with(SHARDS | values).prepare, tmp_path / "cut")
    whole = pd.read_csv(tmp_path / "whole/manifest.csv")
    shards = pd.read_csv(tmp_path / "cut/shards.csv")
    assert [sha256(tmp_path / "cut" / name) for name in shards["file"]] == shards["sha256"].tolist()
    pieces = [np.load(tmp_path / "cut" / name) for name in shards["file"]]
    assert [len(piece) for piece in pieces] == shards["rows"].tolist()
    images, manifest = np.concatenate(pieces), pd.read_parquet(tmp_path / "cut/manifest.parquet")
    assert manifest["index"].is_monotonic_increasing
    assert len(images) == len(manifest) + 1 == 100
    # The same images in the same splits.
    both = whole.merge(manifest, on=["source", "split", "label"], suffixes=("", "_cut"))
    assert len(both) == len(whole) == 99
    assert np.array_equal(np.load(tmp_path / "whole/images.npy")[both["index"]], images[both["index_cut"]])
    assert not images[np.setdiff1d(np.arange(100), manifest["index"])].any(), "zeros where rejected"
    one, other = ((tmp_path / name / "rejected.csv").read_bytes() for name in ("whole", "cut"))
    assert one == other


def test_there_are_hardly_more_shards_than_images() -> None:
    assert len(layout([f"{number}.png" for number in range(100)], 64, 1e-300).rows) == 128

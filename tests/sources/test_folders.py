"""The user's own images, found in folders and tables."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.prepare import prepare
from stages.sources import folders
from stages.sources.loading import load_source
from tests.conftest import write_image
from tests.test_prepare import prepare_params


def names(root: Path, **changes: Any) -> list[tuple[str, str, str]]:
    source = load_source(prepare_params("folder", **changes), root)
    assert not source.rejections
    return list(source.rows[["source", "label", "split"]].itertuples(index=False, name=None))


def test_one_folder_a_class(tmp_path: Path) -> None:
    for name in ("cat/b.png", "dog/a.png", "cat/deep/er/c.jpg", "dog/.hidden.png", ".git/x.png"):
        write_image(tmp_path / name, 0)
    (tmp_path / "cat/Thumbs.db").touch()
    # In the order of their names, not of their folders.
    assert names(tmp_path) == [("dog/a.png", "dog", ""), ("cat/b.png", "cat", ""), ("cat/deep/er/c.jpg", "cat", "")]


def test_what_lies_beside_the_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "__MACOSX/cat/._1.png", "cat.dvc/3.png"):
        write_image(tmp_path / name, 0)
    for name in ("ReadMe.md", "cat.dvc.dvc", "dog.dvc", ".gitignore"):
        (tmp_path / name).touch()
    assert [path for path, _, _ in names(tmp_path)] == ["cat/1.png", "dog/2.png", "cat.dvc/3.png"]
    (tmp_path / "cat/README.md").touch()  # that may be an image of the class by mistake
    assert len(names(tmp_path)) == 4


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    long = tmp_path / ("x" * 300)
    with pytest.raises(InputError, match=r"^prepare\.path: '.*xxx': File name too long$"):
        load_source(prepare_params("folder"), long)
    with pytest.raises(InputError, match=r"^prepare\.csv\.file: '.*xxx': File name too long$"):
        load_source(prepare_params("csv", csv__file=long.name), tmp_path)
    for folder, reason in ((tmp_path / "file", "Not a directory"), (long, "File name too long")):
        with pytest.raises(InputError, match=f"{folder}: {reason}$"):
            folders._entries(folder)


@pytest.mark.parametrize("suffix", ["zip", "xz", "zst", "gz", "bz2", "tar"])
def test_a_table_s_name_does_not_have_it_decompressed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").write_text("image,label\n1.png,a\n2.png,b\n")
    assert load_source(prepare_params("csv", csv__file=f"t.{suffix}"), tmp_path).classes == ["a", "b"]
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(b"image,label\n1.png,a\n2.png,b\n"))
    with pytest.raises(InputError, match="is not UTF-8"):
        load_source(prepare_params("csv", csv__file=f"t.{suffix}"), tmp_path)


def test_spaces_around_a_table_s_paths(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n 1.png ,a\n2.png\t,b\n")
    rows = load_source(prepare_params("csv"), tmp_path).rows
    assert rows["source"].tolist() == ["1.png", "2.png"]


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Valid"])
def test_folders_of_splits(tmp_path: Path, valid: str) -> None:
    for split, digits in (("train", "036"), (valid, "1"), ("test", "24")):
        for digit in digits:
            write_image(tmp_path / split / "ab"[int(digit) % 2] / f"{digit}.png", int(digit))
    assert names(tmp_path) == [
        ("train/a/0.png", "a", "train"),
        (f"{valid}/b/1.png", "b", "valid"),
        ("test/a/2.png", "a", "test"),
        ("train/b/3.png", "b", "train"),
        ("test/a/4.png", "a", "test"),
        ("train/a/6.png", "a", "train"),
    ]


def test_links_that_stay_inside(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / name / "1.png", ord(name))
        (tmp_path / name / "2.png").symlink_to("1.png")
    (tmp_path / "again").symlink_to(".")
    source = load_source(prepare_params("folder"), tmp_path)
    assert source.rows["source"][source.usable].tolist() == ["a/1.png", "b/1.png", "a/2.png", "b/2.png"]
    # That one would go round in circles.
    reasons = [str(rejection) for rejection in source.rejections.values()]
    assert reasons == ["not a file: a link to a folder, which is not followed"]


TABLE = "\n".join(f"{i}.png,{'ab'[i % 2]},{['train', 'train', 'VAL', 'test'][i // 2 % 4]}" for i in range(16))


def test_a_table(tmp_path: Path) -> None:
    for i in range(16):
        write_image(tmp_path / "set" / f"{i}.png", i)
    for header, content in (("image,label,split", TABLE), ("\ufeffimage, label, split", TABLE.replace(",", ", "))):
        (tmp_path / "set/labels.csv").write_text(f"{header}\n{content}\n", encoding="utf-8")
        prepare(prepare_params("csv", csv__split="split"), tmp_path / "set", tmp_path / "prepared")
        manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
        assert manifest["source"].tolist() == [f"{i}.png" for i in range(16)]
        assert manifest["label"].tolist() == [0, 1] * 8
        assert manifest["split"].tolist() == ["train", "train", "train", "train", "valid", "valid", "test", "test"] * 2
        images = np.load(tmp_path / "prepared/images.npy")
        assert (images[5] == np.asarray(Image.open(tmp_path / "set/5.png"))).all()


def test_labels_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,class\n" + "".join(f"{n}.png,{n}\n" for n in ("NA", "007", "1.0", "null")))
    rows = load_source(prepare_params("csv", csv__file="t.csv", csv__image="file", csv__label="class"), tmp_path).rows
    assert rows["label"].tolist() == ["NA", "007", "1.0", "null"]

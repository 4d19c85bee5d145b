"""The user's own images, as a table lists them."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.prepare import prepare
from stages.sources.loading import load_source
from tests.conftest import write_image
from tests.test_prepare import prepare_params


@pytest.mark.parametrize("suffix", ["zip", "xz", "zst", "gz", "bz2", "tar"])
def test_a_table_s_name_does_not_have_it_decompressed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").write_text("image,label\n1.png,a\n2.png,b\n")
    assert load_source(prepare_params("csv", tmp_path, csv__file=f"t.{suffix}")).classes == ["a", "b"]
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(b"image,label\n1.png,a\n2.png,b\n"))
    with pytest.raises(InputError, match="is not UTF-8"):
        load_source(prepare_params("csv", tmp_path, csv__file=f"t.{suffix}"))


def test_spaces_around_a_table_s_paths(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n 1.png ,a\n2.png\t,b\n")
    rows = load_source(prepare_params("csv", tmp_path)).rows
    assert rows["source"].tolist() == ["1.png", "2.png"]


TABLE = "\n".join(f"{i}.png,{'ab'[i % 2]},{['train', 'train', 'VAL', 'test'][i // 2 % 4]}" for i in range(16))


def test_a_table(tmp_path: Path) -> None:
    for i in range(16):
        write_image(tmp_path / "set" / f"{i}.png", i)
    for header, content in (("image,label,split", TABLE), ("\ufeffimage, label, split", TABLE.replace(",", ", "))):
        (tmp_path / "set/labels.csv").write_text(f"{header}\n{content}\n", encoding="utf-8")
        prepare(prepare_params("csv", tmp_path / "set", csv__split="split"), tmp_path / "prepared")
        manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
        assert manifest["source"].tolist() == [f"{i}.png" for i in range(16)]
        assert manifest["label"].tolist() == [0, 1] * 8
        assert manifest["split"].tolist() == ["train", "train", "train", "train", "valid", "valid", "test", "test"] * 2
        images = np.load(tmp_path / "prepared/images.npy")
        assert (images[5] == np.asarray(Image.open(tmp_path / "set/5.png"))).all()


def test_labels_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,class\n" + "".join(f"{n}.png,{n}\n" for n in ("NA", "007", "1.0", "null")))
    rows = load_source(prepare_params("csv", tmp_path, csv__file="t.csv", csv__image="file", csv__label="class")).rows
    assert rows["label"].tolist() == ["NA", "007", "1.0", "null"]


def test_a_caption_may_have_several_lines(tmp_path: Path) -> None:
    content = 'text,image,label\n"a ""rose"",\r\n, is a\nrose",1.png,a\n\n,2.png,b\n"c\n3.png,c,d",4.png,\n,,b\n'
    (tmp_path / "labels.csv").write_text(content, newline="")
    source = load_source(prepare_params("csv", tmp_path))
    assert source.rows["source"].tolist() == ["1.png", "2.png", "4.png", "line 9"]
    assert {row: str(rejection) for row, rejection in source.rejections.items()} == {2: "no label", 3: "no path"}


def test_the_names_of_splits(tmp_path: Path) -> None:
    rows = [f"{row}.png,{'ab'[row % 2]},{split}\n" for row, split in enumerate(["Training", "TRAINING", "dev", "eval"])]
    (tmp_path / "labels.csv").write_text("".join(["image,label,split\n", *rows]))
    assert load_source(prepare_params("csv", tmp_path, csv__split="split")).rows["split"].tolist() == [
        "train",
        "train",
        "valid",
        "test",
    ]

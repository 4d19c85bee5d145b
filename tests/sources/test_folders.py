"""The user's own images, found and prepared."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.base.params import PrepareParams
from stages.prepare import prepare
from stages.sources import decoding, folders
from stages.sources.loading import load_source
from tests.conftest import changed, write_image

HALF = {"prepare.valid_fraction": 0.25, "prepare.test_fraction": 0.25}


def params(source: str, **changes: Any) -> PrepareParams:
    own = {f"prepare.{name.replace('__', '.')}": value for name, value in changes.items()}
    return changed(HALF | {"prepare.source": source} | own).prepare


def names(root: Path, **changes: Any) -> list[tuple[str, str, str]]:
    rows = load_source(params("folder", **changes), root).rows
    assert (rows["reason"] == "").all()
    return list(rows[["source", "label", "split"]].itertuples(index=False, name=None))


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
        load_source(params("folder"), long)
    with pytest.raises(InputError, match=r"^prepare\.csv\.file: '.*xxx': File name too long$"):
        load_source(params("csv", csv__file=long.name), tmp_path)
    for folder, reason in ((tmp_path / "file", "Not a directory"), (long, "File name too long")):
        with pytest.raises(InputError, match=f"{folder}: {reason}$"):
            folders._entries(folder)


@pytest.mark.parametrize("suffix", ["zip", "xz", "zst", "gz", "bz2", "tar"])
def test_a_table_s_name_does_not_have_it_decompressed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").write_text("image,label\n1.png,a\n2.png,b\n")
    assert load_source(params("csv", csv__file=f"t.{suffix}"), tmp_path).classes == ["a", "b"]
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(b"image,label\n1.png,a\n2.png,b\n"))
    with pytest.raises(InputError, match="is not UTF-8"):
        load_source(params("csv", csv__file=f"t.{suffix}"), tmp_path)


def test_spaces_around_a_table_s_paths(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n 1.png ,a\n2.png\t,b\n")
    rows = load_source(params("csv"), tmp_path).rows
    assert rows["source"].tolist() == ["1.png", "2.png"]


def test_a_carriage_return_is_refused_and_the_tables_stay_whole(tmp_path: Path) -> None:
    root = own(tmp_path / "set", {"a/x\ry.png": "a/00.png", "b/x\ny.png": "b/01.png"})
    prepare(params("folder", on_bad="skip"), root, tmp_path / "prepared")
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv", keep_default_na=False)
    assert rejected[["source", "reason"]].to_numpy().tolist() == [
        ["b/x\ny.png", "duplicate: equal to b/01.png"],
        ["a/x\\ry.png", "not a name: it holds a carriage return"],
    ]
    (tmp_path / "labels.csv").write_text('image,label\n"a\r.png",a\nb.png,"b\rc"\nc.png,c\n', newline="")
    rows = load_source(params("csv"), tmp_path).rows
    assert rows[["source", "label", "reason"]].to_numpy().tolist() == [
        ["a\\r.png", "a", "not a name: it holds a carriage return"],
        ["b.png", "b\\rc", "not a label: it holds a carriage return"],
        ["c.png", "c", ""],
    ]


@pytest.mark.parametrize(
    ("classes", "listed"),
    [
        (["Cat", "cat", "dog"], r"  'Cat', 'cat'\n"),
        (["cat ", "cat", "dog"], r"  'cat', 'cat '\n"),
        (["a  b", "a b", "dog"], r"  'a  b', 'a b'\n"),
        (["caf\u00e9", "cafe\u0301", "dog"], r"  'cafe\\u0301', 'caf\u00e9'\n"),
    ],
)
def test_classes_that_look_alike(tmp_path: Path, classes: list[str], listed: str) -> None:
    for name in classes:
        write_image(tmp_path / name / "1.png", 0)
    with pytest.raises(InputError, match=f"Unicode form:\n{listed}Merge them, or list them in prepare.classes"):
        load_source(params("folder"), tmp_path)
    assert load_source(params("folder", classes=classes), tmp_path).classes == classes


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


def test_the_order_of_classes_is_given(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / name / "1.png", 0)
    assert load_source(params("folder"), tmp_path).classes == ["a", "b", "c"]
    assert load_source(params("folder", classes=["c", "a", "b"]), tmp_path).classes == ["c", "a", "b"]


def test_links_that_stay_inside(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / name / "1.png", ord(name))
        (tmp_path / name / "2.png").symlink_to("1.png")
    (tmp_path / "again").symlink_to(".")
    rows = load_source(params("folder"), tmp_path).rows
    assert rows[rows["reason"] == ""]["source"].tolist() == ["a/1.png", "b/1.png", "a/2.png", "b/2.png"]
    # That one would go round in circles.
    assert rows[rows["reason"] != ""]["reason"].tolist() == ["not a file: a link to a folder, which is not followed"]


TABLE = "\n".join(f"{i}.png,{'ab'[i % 2]},{['train', 'train', 'VAL', 'test'][i // 2 % 4]}" for i in range(16))


def test_a_table(tmp_path: Path) -> None:
    for i in range(16):
        write_image(tmp_path / "set" / f"{i}.png", i)
    for header, content in (("image,label,split", TABLE), ("\ufeffimage, label, split", TABLE.replace(",", ", "))):
        (tmp_path / "set/labels.csv").write_text(f"{header}\n{content}\n", encoding="utf-8")
        prepare(params("csv", csv__split="split"), tmp_path / "set", tmp_path / "prepared")
        manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
        assert manifest["source"].tolist() == [f"{i}.png" for i in range(16)]
        assert manifest["label"].tolist() == [0, 1] * 8
        assert manifest["split"].tolist() == ["train", "train", "train", "train", "valid", "valid", "test", "test"] * 2
        images = np.load(tmp_path / "prepared/images.npy")
        assert (images[5] == np.asarray(Image.open(tmp_path / "set/5.png"))).all()


def test_labels_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,class\n" + "".join(f"{n}.png,{n}\n" for n in ("NA", "007", "1.0", "null")))
    rows = load_source(params("csv", csv__file="t.csv", csv__image="file", csv__label="class"), tmp_path).rows
    assert rows["label"].tolist() == ["NA", "007", "1.0", "null"]


def own(root: Path, changes: dict[str, str]) -> Path:
    """Write 40 different images of two classes; `changes` makes files equal to others, by their names."""
    for i in range(40):
        write_image(root / "ab"[i % 2] / f"{i:02}.png", i, side=12)
    for name, original in changes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((root / original).read_bytes())
    return root


def test_processes_and_one_process_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = own(tmp_path / "set", {})
    (root / "a/cut.png").write_bytes((root / "a/00.png").read_bytes()[:-30])
    prepare(params("folder", on_bad="skip"), root, tmp_path / "one")
    monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 10)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    monkeypatch.setattr(decoding, "cores", lambda: 3)
    prepare(params("folder", on_bad="skip"), root, tmp_path / "three")
    for file in ("images.npy", "manifest.csv", "dataset.json", "rejected.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


def test_what_is_skipped_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 00 again in its class; 01 in another, too; one that is no image.
    root = own(tmp_path / "set", {"a/40.png": "a/00.png", "a/41.png": "b/01.png"})
    (root / "a/notes.txt").write_text("roses")
    prepare(params("folder", on_bad="skip"), root, tmp_path / "prepared")
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv", keep_default_na=False)
    assert rejected.to_dict("list") == {
        "source": ["b/01.png", "a/40.png", "a/41.png", "a/notes.txt"],
        "label": ["b", "a", "a", "a"],
        "split": [""] * 4,
        "reason": [
            "contradiction: equal to a/41.png, which is a",
            "duplicate: equal to a/00.png",
            "contradiction: equal to b/01.png, which is b",
            "not an image: not PNG, JPEG, BMP, GIF, TIFF or WEBP, or of a kind that is not supported,"
            " or its start is damaged",
        ],
    }
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert facts["rejected"] == {"contradiction": 2, "duplicate": 1, "not an image": 1}
    assert "4 of 43 images" in capsys.readouterr().err
    images, manifest = np.load(tmp_path / "prepared/images.npy"), pd.read_csv(tmp_path / "prepared/manifest.csv")
    assert len(images) == 43
    assert manifest["index"].tolist() == [0, *range(2, 40)]
    assert not images[[1, 40, 41, 42]].any()
    assert images[manifest["index"]].any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("copies", "stays"),
    [(["train", "valid", "test"], "test"), (["train", "valid"], "valid"), (["train", "train"], "train")],
)
def test_of_equal_images_that_of_the_test_split_stays(tmp_path: Path, copies: list[str], stays: str) -> None:
    for i in range(12):
        write_image(tmp_path / "set" / ("train", "valid", "test")[i % 3] / "ab"[i // 3 % 2] / f"{i}.png", i)
    for i, split in enumerate(copies):
        write_image(tmp_path / "set" / split / "a" / f"copy{i}.png", 99)
    prepare(params("folder", on_bad="skip"), tmp_path / "set", tmp_path / "prepared")
    manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
    kept = manifest[manifest["source"].str.contains("copy")]
    assert kept["split"].tolist() == [stays]
    reasons = pd.read_csv(tmp_path / "prepared/rejected.csv")["reason"].tolist()
    leaks = [f"leak: equal to {kept['source'].item()}, in {stays}"] * (len(copies) - 1)
    assert reasons == (leaks if stays != "train" else ["duplicate: equal to train/a/copy0.png"])


def test_a_clean_set_has_no_list_of_the_rejected(tmp_path: Path) -> None:
    prepare(params("folder"), own(tmp_path / "set", {}), tmp_path / "prepared")
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [
        "dataset.json",
        "images.npy",
        "manifest.csv",
    ]
    assert "rejected" not in json.loads((tmp_path / "prepared/dataset.json").read_text())


def check_the_same(published: Path, root: Path, tmp_path: Path) -> None:
    """The files of a published set, as a folder and as a table, are prepared as it was."""
    images, manifest = np.load(published / "images.npy", mmap_mode="r"), pd.read_csv(published / "manifest.csv")
    facts = json.loads((published / "dataset.json").read_text())
    classes = [name.replace("/", "_") for name in facts["classes"]]
    lines = ["image,label,split"]
    for row, split, label in zip(manifest["index"], manifest["split"], manifest["label"], strict=True):
        path = f"{split}/{classes[label]}/{row:05}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[row]).save(root / path)
        lines.append(f"{path},{classes[label]},{split}")
    prepare(params("folder", classes=classes), root, tmp_path / "of_folder")
    (root / "labels.csv").write_text("\n".join(lines))
    prepare(params("csv", classes=classes, csv__split="split"), root, tmp_path / "of_csv")
    for folder in (tmp_path / "of_folder", tmp_path / "of_csv"):
        assert (folder / "images.npy").read_bytes() == (published / "images.npy").read_bytes()
        again = pd.read_csv(folder / "manifest.csv")
        assert again[["index", "split", "label"]].equals(manifest[["index", "split", "label"]])
        found = json.loads((folder / "dataset.json").read_text())
        for key in ("sha256", "mean", "std", "sizes", "image_size", "channels"):
            assert found[key] == facts[key]


def test_digits_as_files_are_the_digits(digits: Path, tmp_path: Path) -> None:
    check_the_same(digits, tmp_path / "files", tmp_path)


@pytest.mark.slow
def test_fashion_mnist_as_70_000_files_is_fashion_mnist(tmp_path: Path) -> None:
    prepare(changed({"prepare.source": "fashion_mnist"}).prepare, tmp_path / "none", tmp_path / "published")
    check_the_same(tmp_path / "published", tmp_path / "files", tmp_path)

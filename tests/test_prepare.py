import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.base.errors import InputError
from stages.base.params import PrepareParams
from stages.prepare import prepare
from stages.sources import decoding
from tests.conftest import params_with, write_image


def test_prepared_digits(digits: Path) -> None:
    source = load_digits()
    images = np.load(digits / "images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert np.array_equal(np.round(images / 255 * 16), source.images)

    manifest = pd.read_csv(digits / "manifest.csv")
    assert manifest.columns.tolist() == ["index", "split", "label", "source"]
    assert manifest["index"].tolist() == list(range(1797))
    assert manifest["label"].tolist() == source.target.tolist()
    assert manifest["source"].iloc[3] == "digits/3"
    assert manifest["split"].value_counts().to_dict() == {"train": 1259, "test": 359, "valid": 179}

    facts = json.loads((digits / "dataset.json").read_text())
    training = images[manifest["split"] == "train"]
    assert facts["classes"][3] == "three"
    assert facts["mean"] == [pytest.approx(training.mean() / 255, rel=1e-5)]
    assert facts["std"] == [pytest.approx(training.std() / 255, rel=1e-5)]
    assert facts["sizes"] == {"train": 1259, "valid": 179, "test": 359}


def test_twice_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    prepare(params_with({}).prepare, tmp_path / "again")
    names = sorted(path.name for path in digits.iterdir())
    assert names == ["dataset.json", "images.npy", "manifest.csv"]
    for name in names:
        assert (digits / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "old.txt").touch()
    prepare(params_with({}).prepare, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "images.npy", "manifest.csv"]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"prepare.valid_fraction": 0.6, "prepare.test_fraction": 0.6}, r"train 0, valid \d+, test \d+"),
        ({"prepare.valid_fraction": 0.0001, "prepare.test_fraction": 0.0001}, r"train 178, valid 0, test 0"),
    ],
)
def test_fractions_that_leave_a_split_empty(tmp_path: Path, changes: dict[str, float], counts: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)prepare\.valid_fraction 0.* too few:\n  zero: {counts}\n  one: "):
        prepare(params_with(changes).prepare, tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


def test_built_in_images_in_another_size_and_in_colour(digits: Path, tmp_path: Path) -> None:
    params = params_with({"prepare.channels": 3, "prepare.image_size": 16}).prepare
    prepare(params, tmp_path / "prepared")
    small, large = np.load(digits / "images.npy"), np.load(tmp_path / "prepared/images.npy")
    assert large.shape == (1797, 3, 16, 16)
    assert (large[:, 0] == large[:, 2]).all()
    assert np.abs(large[:, 0].reshape(1797, 8, 2, 8, 2).mean(axis=(2, 4)) - small).mean() < 15
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert (facts["channels"], facts["image_size"], len(facts["mean"]), len(facts["std"])) == (3, 16, 3, 3)


def test_a_limit_takes_as_many_of_each_class_and_split(digits: Path, tmp_path: Path) -> None:
    for name, changes in {"one": {}, "two": {}, "other": {"prepare.seed": 1}}.items():
        prepare(params_with({"prepare.limit": 20} | changes).prepare, tmp_path / name)
    manifest = pd.read_csv(tmp_path / "one/manifest.csv")
    assert Counter(zip(manifest["label"], manifest["split"], strict=True)) == {
        (label, split): count for label in range(10) for split, count in {"train": 14, "valid": 2, "test": 4}.items()
    }
    images, all_images = np.load(tmp_path / "one/images.npy"), np.load(digits / "images.npy")
    originals = manifest["source"].str.removeprefix("digits/").astype(int)
    assert np.array_equal(images[manifest["index"]], all_images[originals])
    assert (tmp_path / "one/manifest.csv").read_bytes() == (tmp_path / "two/manifest.csv").read_bytes()
    assert (tmp_path / "one/manifest.csv").read_bytes() != (tmp_path / "other/manifest.csv").read_bytes()
    prepare(params_with({"prepare.limit": 10_000}).prepare, tmp_path / "all")
    assert (tmp_path / "all/dataset.json").read_bytes() == (digits / "dataset.json").read_bytes()


def test_a_limit_decodes_no_more_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"raw/{split}/{label}/{n}.png" for label in "ab" for split in ("train", "test") for n in range(5)]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / name, seed=seed)
    (tmp_path / "raw/train/b/link.png").symlink_to("/etc/passwd")
    changes = {"limit": 3, "valid_fraction": 0.34, "on_bad": "skip"}
    prepare(prepare_params("folder", tmp_path / "raw", **changes), tmp_path / "prepared")
    manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
    assert Counter(zip(manifest["label"], manifest["split"], strict=True)) == {
        (label, split): count for label in range(2) for split, count in {"train": 2, "valid": 1, "test": 3}.items()
    }
    assert len(np.load(tmp_path / "prepared/images.npy")) == 13, "with the place of the one that is refused"
    assert "link.png" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"link\.png"):
        prepare(prepare_params("folder", tmp_path / "raw", **changes | {"on_bad": "error"}), tmp_path / "prepared")
    with pytest.raises(InputError, match=r"(?s)needs an image in each split.*prepare\.limit leaves 1 images of"):
        prepare(prepare_params("folder", tmp_path / "raw", **changes | {"limit": 1}), tmp_path / "prepared")


def prepare_params(source: str, path: Path, **changes: Any) -> PrepareParams:
    """Return the section prepare for the images at `path`, with changes; csv__file stands for prepare.csv.file."""
    given = {f"prepare.{name.replace('__', '.')}": value for name, value in changes.items()}
    fractions = {"prepare.valid_fraction": 0.25, "prepare.test_fraction": 0.25}
    return params_with(fractions | {"prepare.source": source, "prepare.path": str(path)} | given).prepare


def forty_images(root: Path, changes: dict[str, str]) -> Path:
    """Write 40 different images of two classes; `changes` makes files equal to others, by their names."""
    for i in range(40):
        write_image(root / "ab"[i % 2] / f"{i:02}.png", i, side=12)
    for name, original in changes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((root / original).read_bytes())
    return root


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_and_one_process_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setattr("stages.base.workers.START", start)
    root = forty_images(tmp_path / "set", {})
    (root / "a/cut.png").write_bytes((root / "a/00.png").read_bytes()[:-30])
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "one")
    monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 10)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    monkeypatch.setattr(decoding, "cores", lambda: 3)
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "three")
    for file in ("images.npy", "manifest.csv", "dataset.json", "rejected.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


def test_what_is_skipped_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 00 again in its class; 01 in another, too; one that is no image.
    root = forty_images(tmp_path / "set", {"a/40.png": "a/00.png", "a/41.png": "b/01.png"})
    (root / "a/notes.txt").write_text("roses")
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "prepared")
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


def test_an_unusable_image_is_equal_to_none(tmp_path: Path) -> None:
    root = forty_images(tmp_path / "set", {})
    Image.new("L", (12, 12)).save(root / "a/black.png")  # all zeros, as an unusable image is in images.npy
    for name in ("a/broken1.png", "b/broken2.png"):
        (root / name).touch()
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "prepared")
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert facts["rejected"] == {"not an image": 2}
    assert "a/black.png" in pd.read_csv(tmp_path / "prepared/manifest.csv")["source"].tolist()


@pytest.mark.parametrize(
    ("copies", "stays"),
    [(["train", "valid", "test"], "test"), (["train", "valid"], "valid"), (["train", "train"], "train")],
)
def test_of_equal_images_that_of_the_test_split_stays(tmp_path: Path, copies: list[str], stays: str) -> None:
    for i in range(12):
        write_image(tmp_path / "set" / ("train", "valid", "test")[i % 3] / "ab"[i // 3 % 2] / f"{i}.png", i)
    for i, split in enumerate(copies):
        write_image(tmp_path / "set" / split / "a" / f"copy{i}.png", 99)
    prepare(prepare_params("folder", tmp_path / "set", on_bad="skip"), tmp_path / "prepared")
    manifest = pd.read_csv(tmp_path / "prepared/manifest.csv")
    kept = manifest[manifest["source"].str.contains("copy")]
    assert kept["split"].tolist() == [stays]
    reasons = pd.read_csv(tmp_path / "prepared/rejected.csv")["reason"].tolist()
    leaks = [f"leak: equal to {kept['source'].item()}, in {stays}"] * (len(copies) - 1)
    assert reasons == (leaks if stays != "train" else ["duplicate: equal to train/a/copy0.png"])


@pytest.mark.parametrize("source", ["folder", "csv"])
@pytest.mark.parametrize("broken", ["unlabelled", "unreadable"])
def test_a_split_of_which_nothing_can_be_used_is_made_here(
    tmp_path: Path, source: str, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, lines = tmp_path / "set", ["image,label,split"]
    for i in range(40):
        write_image(root / "train" / "ab"[i % 2] / f"{i:02}.png", i)
        lines.append(f"train/{'ab'[i % 2]}/{i:02}.png,{'ab'[i % 2]},train")
    for i in range(5):
        label = "" if broken == "unlabelled" else "a"
        (root / "test" / label).mkdir(parents=True, exist_ok=True)
        write_image(root / "test" / label / f"t{i}.png", 50 + i)
        if broken == "unreadable":
            (root / "test" / label / f"t{i}.png").write_bytes(b"")
        lines.append(f"test/{label}/t{i}.png,{label},test")
    (root / "labels.csv").write_text("\n".join(lines))
    if source == "folder":
        (root / "labels.csv").unlink()
    changes = {"csv__split": "split"} if source == "csv" else {}
    prepare(prepare_params(source, root, on_bad="skip", **changes), tmp_path / "prepared")
    facts = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert facts["sizes"] == {"train": 20, "valid": 10, "test": 10}
    assert sum(facts["rejected"].values()) == 5
    said = capsys.readouterr().err
    assert said.endswith(
        "No image of the split test can be used: prepare.test_fraction takes 0.25 of each class instead\n"
    )


def test_a_training_split_of_which_nothing_can_be_used_is_an_error(tmp_path: Path) -> None:
    for i in range(12):
        write_image(tmp_path / "set" / ("train", "valid", "test")[i % 3] / "ab"[i // 3 % 2] / f"{i}.png", i)
    for path in (tmp_path / "set/train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"(?s)4 of 12 images .*not an image.*  a: train 0, valid 2, test 2\n  b: train 0"
    ):
        prepare(prepare_params("folder", tmp_path / "set", on_bad="skip"), tmp_path / "prepared")


def test_the_whole_list_of_an_error_is_beside_and_goes_with_the_next_one(tmp_path: Path) -> None:
    root, listing = forty_images(tmp_path / "set", {}), tmp_path / "data/rejected.csv"
    for i in range(30):
        (root / f"a/broken{i:02}.png").touch()
    with pytest.raises(InputError, match=rf"and 10 more\nAll of them are listed in {listing}\nCorrect them"):
        prepare(prepare_params("folder", root), tmp_path / "data/prepared")
    assert pd.read_csv(listing)["source"].tolist() == [f"a/broken{i:02}.png" for i in range(30)]
    for i in range(29):
        (root / f"a/broken{i:02}.png").unlink()
    with pytest.raises(InputError, match="1 of 41 images"):
        prepare(prepare_params("folder", root), tmp_path / "data/prepared")
    assert len(pd.read_csv(listing)) == 1
    assert [path.name for path in listing.parent.iterdir()] == ["rejected.csv"]
    prepare(prepare_params("folder", root, on_bad="skip"), tmp_path / "data/prepared")
    assert [path.name for path in listing.parent.iterdir()] == ["prepared"]


def test_a_clean_set_has_no_list_of_the_rejected(tmp_path: Path) -> None:
    prepare(prepare_params("folder", forty_images(tmp_path / "set", {})), tmp_path / "prepared")
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
    prepare(prepare_params("folder", root, classes=classes), tmp_path / "of_folder")
    (root / "labels.csv").write_text("\n".join(lines))
    prepare(prepare_params("csv", root, classes=classes, csv__split="split"), tmp_path / "of_csv")
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
    prepare(params_with({"prepare.source": "fashion_mnist"}).prepare, tmp_path / "published")
    check_the_same(tmp_path / "published", tmp_path / "files", tmp_path)

"""What shows only when all images are decoded: colour, the range of 16 bits, equal images and those of one colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.prepare import prepare
from tests.conftest import write_image
from tests.test_prepare import forty_images, prepare_params


def prepared(root: Path, **changes: Any) -> np.ndarray:
    prepare(prepare_params("folder", path=root, **changes), root.parent / "prepared")
    array: np.ndarray = np.load(root.parent / "prepared/images.npy")
    facts = json.loads((root.parent / "prepared/dataset.json").read_text())
    assert facts["channels"] == (1 if array.ndim == 3 else 3)
    assert len(facts["mean"]) == facts["channels"]
    return array


def images(root: Path, mode: str, *names: str) -> None:
    for i in range(40):
        name = f"{'ab'[i % 2]}/{i:02}.png"
        write_image(root / name, i, side=12, mode=mode if not names or name in names else "L")


@pytest.mark.usefixtures("processes")
def test_colour_is_kept_if_any_image_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "set", "RGB", "b/39.png")
    array = prepared(tmp_path / "set")
    assert array.shape == (40, 3, 12, 12)
    assert (array == prepared(tmp_path / "set", channels=3)).all()
    assert (array[39].transpose(1, 2, 0) == np.asarray(Image.open(tmp_path / "set/b/39.png"))).all()
    assert (array[:39] == array[:39, :1]).all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK", "LA", "1"])
def test_gray_images_of_any_mode_have_one_channel(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "gray", "L")
    for path in [*(tmp_path / "gray").rglob("*.png")]:
        target = (
            tmp_path / "set" / path.relative_to(tmp_path / "gray").with_suffix(".tif" if mode == "CMYK" else ".png")
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert(mode).save(target)
    array = prepared(tmp_path / "set", image_size=8)
    assert array.shape == (40, 8, 8)
    assert (array == prepared(tmp_path / "set", image_size=8, channels=1)).all()
    if mode not in ("CMYK", "1"):
        assert (array == prepared(tmp_path / "gray", image_size=8)).all()
    assert capsys.readouterr().err == ""


def test_colour_that_gets_lost_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "set", "RGB", "b/39.png", "a/04.png")
    array = prepared(tmp_path / "set", channels=1)
    assert array.shape == (40, 12, 12)
    assert (array[39] == np.asarray(Image.open(tmp_path / "set/b/39.png").convert("L"))).all()
    assert capsys.readouterr().err == (
        "2 of 40 images have colour, such as a/04.png, and prepare.channels: 1 makes them gray."
        " To keep it: prepare.channels=null\n"
    )


def twelve_bits(root: Path, n_images: int = 40) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 4096, (n_images, 8, 8)).astype(np.uint16)
    values[3, 0, 0] = 4095
    for i, image in enumerate(values):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return values


def test_16_bits_are_scaled_by_the_set_s_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = twelve_bits(tmp_path / "set")
    write_image(tmp_path / "set/a/00.png", 0)  # one of 8 bits among them
    array = prepared(tmp_path / "set")
    assert (array[1:] == np.round(values[1:] / 4095 * 255)).all()
    assert (array[0] == np.asarray(Image.open(tmp_path / "set/a/00.png"))).all()
    have = "39 of 40 images have 16 bits, and values up to 4,095 only, such as b/01.png, so"
    said = capsys.readouterr().err
    assert said == f"{have} 4,095 becomes white. For 65,535 instead: prepare.sixteen_bits=16\n"
    assert (array == prepared(tmp_path / "set", sixteen_bits=12)).all()
    assert capsys.readouterr().err == ""
    assert prepared(tmp_path / "set", sixteen_bits=16)[1:].max() == 16
    assert capsys.readouterr().err == (
        f"{have} they are dark with prepare.sixteen_bits: 16. For what they use: prepare.sixteen_bits=null\n"
    )
    with pytest.raises(InputError, match=r"39 of 40 images .*\(unsupported pixels 39\):\n  b/01\.png: .* has 1,023"):
        prepared(tmp_path / "set", sixteen_bits=10)


def test_all_of_16_bits_are_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = twelve_bits(tmp_path / "set") * 16
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / "set" / "ab"[i % 2] / f"{i:02}.png")
    assert (prepared(tmp_path / "set") == np.round(values / 65535 * 255)).all()
    assert capsys.readouterr().err == ""


def test_equal_images_are_compared_as_they_came(tmp_path: Path) -> None:
    root = forty_images(tmp_path / "set", {})
    Image.open(root / "a/00.png").save(root / "a/same.bmp")
    pixels = np.asarray(Image.open(root / "a/02.png").resize((120, 120), Image.Resampling.NEAREST)).copy()
    for name, level in (("near1", 0), ("near2", 1)):
        pixels[0, 0] = level
        Image.fromarray(pixels).save(root / f"a/{name}.png")
    prepared(root, image_size=6, on_bad="skip")
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv")
    assert dict(zip(rejected["source"], rejected["reason"], strict=True)) == {
        "a/same.bmp": "duplicate: equal to a/00.png",
        "a/near2.png": "duplicate: equal at 6 pixels to a/near1.png",
    }


def test_images_of_one_colour_are_named_and_compared_as_they_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = forty_images(tmp_path / "set", {})
    page = np.full((120, 120), 255, np.uint8)
    for name, side in (("a/blank", 12), ("b/other", 30), ("a/blank2", 12)):
        Image.fromarray(page[:side, :side]).save(root / f"{name}.png")
    page[5, 5] = 254
    Image.fromarray(page).save(root / "b/print.png")
    prepared(root, image_size=4, on_bad="skip")
    said = capsys.readouterr().err
    names = ["a/blank.png", "a/blank2.png", "b/other.png", "b/print.png"]
    assert said.startswith(
        "\n".join(["4 of 44 images are of one colour at 4 pixels:", *(f"  {name}" for name in names)])
    )
    rejected = pd.read_csv(tmp_path / "prepared/rejected.csv")
    assert rejected[["source", "reason"]].to_numpy().tolist() == [
        ["a/blank2.png", "duplicate: equal to a/blank.png"],
    ]


def test_one_colour_is_told_from_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "set", "RGB")
    flat = np.full((12, 12, 3), (200, 30, 7), np.uint8)
    Image.fromarray(flat).save(tmp_path / "set/a/red.png")
    flat[11, 11, 2] = 8
    Image.fromarray(flat).save(tmp_path / "set/b/nearly.png")
    prepared(tmp_path / "set")
    assert capsys.readouterr().err == "1 of 42 images are of one colour at 12 pixels:\n  a/red.png\n"

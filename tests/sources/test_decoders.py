"""What decoders say goes to the reason of the file, and their limits for metadata cost no image."""

import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from stages.prepare import prepare
from stages.sources.decoders import decoders, plain, without_metadata
from stages.sources.images import ImageSpec, from_file, size_of
from tests.conftest import ROOT
from tests.test_prepare import prepare_params

QUARTERS = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))


def read(path: Path) -> np.ndarray:
    with decoders(10_000):
        return from_file(str(path), ImageSpec(1, 16, None, 10_000)).pixels


def text(n_bytes: int, start: str = "") -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", start.ljust(n_bytes), zip=True)
    return info


def test_much_text_is_no_damage(tmp_path: Path) -> None:
    Image.fromarray(QUARTERS).save(tmp_path / "a.png", pnginfo=text(2_000_000, '<a tiff:Orientation="6"/>'))
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):  # what makes it a case
        Image.open(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == np.rot90(QUARTERS, 3)).all()


def test_a_large_colour_profile_is_no_damage(tmp_path: Path) -> None:
    Image.fromarray(QUARTERS).save(tmp_path / "a.png", icc_profile=bytes(3_000_000))
    assert (read(tmp_path / "a.png") == QUARTERS).all()


@pytest.mark.parametrize("kind", ["text", "profile", "random text", "text behind the pixels"])
def test_metadata_beyond_the_limit_are_left_out(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.sources.decoders.METADATA", 3_000_000)
    path, image = tmp_path / "a.png", Image.fromarray(QUARTERS)
    if kind == "profile":
        image.save(path, icc_profile=bytes(4_000_000))
    elif kind == "random text":  # does not compress, so that the file is a large one
        info = PngInfo()
        info.add_text("noise", "".join(map(chr, np.random.default_rng(0).integers(1, 256, 4_000_000))))
        image.save(path, pnginfo=info)
    else:
        image.save(path, pnginfo=text(4_000_000))
    if "behind" in kind:
        content = path.read_bytes()
        plain_ = without_metadata(content)
        place = content.index(b"iTXt") - 4
        chunk = content[place : content.index(b"IDAT") - 4]
        path.write_bytes(plain_[:-12] + chunk + plain_[-12:])
    tracemalloc.start()
    assert (read(path) == QUARTERS).all()
    with decoders(10_000):
        assert size_of(str(path), 10_000) == (16, 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20


def test_limits_and_warnings_are_as_before_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    before = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    with decoders(7) as said:
        assert Image.MAX_IMAGE_PIXELS == 7
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'one\\ntwo  2\\n')"], check=True)
        warnings.warn("of <_io.BytesIO object at 0x7f00ff> only", stacklevel=1)
        assert said() == "of it only; one; two 2"
        assert said() == ""
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'x' * 1000)"], check=True)
        assert said() == "x" * 300 + " ..."
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    print("shown again", file=sys.stderr)
    assert capfd.readouterr().err == "shown again\n"
    assert plain("KeyError: 0x10") == "KeyError: 0x10"


@pytest.mark.usefixtures("processes")
def test_libtiff_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for i in range(80):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path, compression="tiff_deflate")
        if i < 40:
            content = bytearray(path.read_bytes())
            content[60:64] = b"abcd"
            path.write_bytes(content)
    prepare(prepare_params("folder", path=tmp_path / "set", on_bad="skip"), tmp_path / "prepared")
    reason = "cut or damaged: decoder error -2; ZIPDecode: Decoding error at scanline 0, incorrect data check."
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"40 of 80 images of {tmp_path}/set cannot be used (cut or damaged 40):"
    assert lines[1:] == [*(f"  {'ab'[i % 2]}/{i:02}.tif: {reason}" for i in range(20)), "  and 20 more"]
    assert set(pd.read_csv(tmp_path / "prepared/rejected.csv")["reason"]) == {reason}


def test_an_error_that_ends_the_decoding_is_shown() -> None:
    code = """
from stages.sources.decoders import decoders
with decoders(7):
    raise SystemExit("the reason")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "the reason\n")

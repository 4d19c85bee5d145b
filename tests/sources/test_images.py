"""Images of every kind, as a viewer shows them."""

import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from stages.sources.decoders import decoders
from stages.sources.images import ImageSpec, from_file, size_of
from stages.sources.rejections import UnusableError
from tests.conftest import ROOT, write_image


def read(path: Path, channels: int = 1, size: int = 8, fit: str | None = None) -> np.ndarray:
    with decoders(10_000):
        return from_file(str(path), ImageSpec(channels, size, fit, 10_000)).pixels


GRAY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tif", "a.tiff", "a.webp", "a.TXT"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, name: str) -> None:
    formats = {"webp": "WEBP", "TXT": "PNG"}  # the content counts, not the name
    options: dict[str, Any] = {"lossless": True} if "webp" in name else {}
    Image.fromarray(GRAY).save(tmp_path / name, formats.get(name[2:]), **options)
    assert (read(tmp_path / name) == GRAY).all()
    assert (read(tmp_path / name, channels=3) == GRAY).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colour_is_channels_first_or_luma(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}")
    array = read(tmp_path / f"a.{suffix}", channels=3)
    assert array.dtype == np.uint8
    assert (array == COLOUR.transpose(2, 0, 1)).all()
    assert (read(tmp_path / f"a.{suffix}") == np.asarray(Image.fromarray(COLOUR).convert("L"))).all()


def test_jpeg_in_gray_colour_and_cmyk(tmp_path: Path) -> None:
    gradient = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(gradient).convert(mode).save(tmp_path / f"{mode}.jpg", quality=100, subsampling=0)
        for channels in (1, 3):
            assert np.abs(read(tmp_path / f"{mode}.jpg", channels).astype(int) - gradient).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Four flat quarters, which survive JPEG.
    quarters = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(quarters).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    quarter_turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    mirrored = np.fliplr(quarters) if orientation in (2, 4) else quarters
    mirrored = np.flipud(mirrored) if orientation in (5, 7) else mirrored
    expected = np.rot90(mirrored, quarter_turns)
    if orientation in (5, 7):  # transposed, and transposed across the other diagonal
        expected = quarters.T if orientation == 5 else quarters[::-1, ::-1].T
    assert np.abs(read(tmp_path / f"a.{suffix}", size=16).astype(int) - expected).max() <= 2


def odd_exif(orientation: int) -> bytes:
    """EXIF with the orientation, and a tag of text whose number is out of what can be written again."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHIf", 0x0100, 11, 1, 1e38)
    entries += struct.pack("<HHII", 0x0111, 9, 1, 0xFFFFFFFF)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4)


def test_a_rotated_photograph_with_odd_exif_is_good(tmp_path: Path) -> None:
    quarters = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))
    Image.fromarray(quarters).save(tmp_path / "a.jpg", exif=odd_exif(6))
    with pytest.raises(struct.error):  # what makes it a case
        ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    assert np.abs(read(tmp_path / "a.jpg", size=16).astype(int) - np.rot90(quarters, 3)).max() <= 2


def test_broken_exif_in_a_png_s_text_is_none(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n  4\nno hexadecimal digits")
    Image.fromarray(GRAY).save(tmp_path / "a.png", pnginfo=info)
    assert (read(tmp_path / "a.png") == GRAY).all()


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    array = read(tmp_path / "rgba.png", channels=3)
    assert (array[:, :4] == 255).all()
    assert (array[:, 4:] == COLOUR.transpose(2, 0, 1)[:, 4:]).all()

    Image.fromarray(np.dstack([GRAY, rgba[..., 3]]), "LA").save(tmp_path / "la.png")
    array = read(tmp_path / "la.png")
    assert (array[:4] == 255).all()
    assert (array[4:] == GRAY[4:]).all()


def test_half_transparent_is_between(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == 127).all()


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_a_transparent_colour(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8).repeat(4, 0).repeat(4, 1)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / f"plain.{suffix}")
    image.save(tmp_path / f"clear.{suffix}", transparency=1)
    assert read(tmp_path / f"plain.{suffix}", 3)[:, 0, [0, 7]].T.tolist() == [[255, 0, 0], [0, 255, 0]]
    assert read(tmp_path / f"clear.{suffix}", 3)[:, 0, [0, 7]].T.tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_gray_level(tmp_path: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
    levels = np.full((8, 8), 7, dtype)
    levels[0] = 8
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=7)
    array = read(tmp_path / "a.png")
    assert (array[1:] == 255).all()
    assert (array[0] <= 8).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    assert (read(tmp_path / f"a.{suffix}") == GRAY).all()
    Image.fromarray(np.full((8, 8), 0x1234, np.uint16)).save(tmp_path / f"b.{suffix}")
    assert (read(tmp_path / f"b.{suffix}") == round(0x1234 / 257)).all()
    Image.fromarray(GRAY.astype(np.int32) * 257).save(tmp_path / "c.tif")
    assert (read(tmp_path / "c.tif", channels=3) == GRAY).all()


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GRAY > 127).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == (GRAY > 127) * 255).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_frames(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 100, 200)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / f"a.{suffix}") == 0).all()


def test_fits(tmp_path: Path) -> None:
    # A black and a white half with a gray band between them, 24 x 8.
    strip = np.repeat(np.array([[0] * 8 + [128] * 8 + [255] * 8], np.uint8), 8, axis=0)
    Image.fromarray(strip).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", fit="crop") == 128).all()
    padded = read(tmp_path / "a.png", fit="pad")
    assert padded[2:5].any(axis=1).all()
    assert not padded[:2].any()
    assert not padded[5:].any()
    stretched = read(tmp_path / "a.png", fit="stretch")
    assert (stretched[:, 0] <= 4).all()
    assert (stretched[:, 7] >= 251).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_line_of_pixels_fits(tmp_path: Path, fit: str) -> None:
    Image.new("L", (2000, 1), 200).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", fit=fit).max() == 200


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_right_size_is_not_resampled(tmp_path: Path, fit: str) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", fit=fit) == GRAY).all()


def test_a_large_jpeg_is_near_its_full_decoding(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0, side=8)
    Image.open(tmp_path / "a.png").resize((96, 80)).save(tmp_path / "a.jpg", quality=95)
    expected = ImageOps.fit(Image.open(tmp_path / "a.jpg"), (8, 8), Image.Resampling.LANCZOS)
    assert np.abs(read(tmp_path / "a.jpg", fit="crop").astype(int) - np.asarray(expected)).max() <= 6


def test_a_photograph_with_a_second_one_is_drafted_like_any(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8))
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[image])
    assert Image.open(tmp_path / "a.mpo").format == "MPO"
    one, two = (read(tmp_path / name, fit="crop") for name in ("a.jpg", "a.mpo"))
    assert (one == two).all()


def test_the_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0, side=90)
    content = (tmp_path / "a.png").read_bytes()
    with (tmp_path / "a.png").open("wb") as file:
        file.write(content)
        file.truncate(200 << 20)  # takes no room on the disk
    tracemalloc.start()
    with decoders(10_000):
        assert size_of(str(tmp_path / "a.png"), 10_000) == (90, 90)
        assert size_of(str(tmp_path), 10_000) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(("n_bytes", "reason"), [(200 << 20, "not an image"), (300 << 20, "too large: 314,572,800")])
def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path, n_bytes: int, reason: str) -> None:
    with (tmp_path / "film").open("wb") as file:
        file.truncate(n_bytes)
    tracemalloc.start()
    with pytest.raises(UnusableError, match=f"^{reason}"):
        read(tmp_path / "film")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_full_memory_is_no_fault_of_the_image(tmp_path: Path) -> None:
    Image.new("L", (7000, 7000)).save(tmp_path / "a.png")
    code = f"""
import resource
from pathlib import Path
from stages.base.errors import InputError
from stages.sources.decoders import decoders
from stages.sources.images import ImageSpec, from_file
from_file({str(tmp_path / "b.png")!r}, ImageSpec(1, 8, "crop", 100))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20),) * 2)
try:
    with decoders(50_000_000):
        from_file({str(tmp_path / "a.png")!r}, ImageSpec(1, 8, "crop", 50_000_000))
except InputError as error:
    print(error)
"""
    write_image(tmp_path / "b.png", 0)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/a.png: there is too little memory to decode it\n"


def test_pillow_s_limit_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it would warn of more than 10, and refuse more than 20
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", size=100).shape == (100, 100)
    assert Image.MAX_IMAGE_PIXELS == 10
    Image.new("L", (101, 100)).save(tmp_path / "b.png")
    with pytest.raises(UnusableError, match=r"^too many pixels: 10,100, and prepare\.max_pixels is 10,000$"):
        read(tmp_path / "b.png", size=100)

"""Images of 16 bits, in gray and in colour, of which not all bits are used."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.sources.decoders import decoders
from stages.sources.images import ImageSpec, Picture, from_file
from stages.sources.rejections import UnusableError
from tests.sources.test_broken_data import chunk, tiff

VALUES = np.random.default_rng(0).integers(0, 4096, (8, 8, 4), dtype=np.uint16)
SCALED = np.round(VALUES / 4095 * 255).astype(np.uint8)


def read(path: Path, channels: int = 3, bits: int = 12) -> Picture:
    with decoders(1000):
        return from_file(str(path), ImageSpec(channels, 8, None, 1000, white=2**bits - 1))


def png(path: Path, values: np.ndarray, colour_type: int) -> Path:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(VALUES[..., 0]).save(tmp_path / f"a.{suffix}")
    picture = read(tmp_path / f"a.{suffix}", channels=1)
    assert (picture.pixels == SCALED[..., 0]).all()
    assert (picture.has_colour, picture.largest) == (False, VALUES[..., 0].max())
    assert read(tmp_path / f"a.{suffix}", channels=1, bits=16).pixels.max() == 16
    with pytest.raises(
        UnusableError, match=r"^unsupported pixels: values up to 4,0\d\d, and prepare\.sixteen_bits has 2,047"
    ):
        read(tmp_path / f"a.{suffix}", bits=11)


def test_colour(tmp_path: Path) -> None:
    picture = read(png(tmp_path / "a.png", VALUES[..., :3], 2))
    assert (picture.pixels == SCALED[..., :3].transpose(2, 0, 1)).all()
    assert picture.largest == VALUES[..., :3].max()
    assert (read(tmp_path / "a.png", bits=16).pixels == VALUES[..., :3].transpose(2, 0, 1) >> 8).all()


def test_colour_with_transparency(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[..., 3] = 0xFFFF
    values[0, ..., 3] = 0
    picture = read(png(tmp_path / "a.png", values, 6))
    assert (picture.pixels[:, 0] == 255).all()
    assert (picture.pixels[:, 1:] == SCALED[1:, :, :3].transpose(2, 0, 1)).all()
    assert picture.largest == values[..., :3].max()


def test_gray_with_transparency(tmp_path: Path) -> None:
    values = VALUES[..., [0, 3]].copy()
    values[..., 1] = 0xFFFF
    values[0, ..., 1] = 0
    picture = read(png(tmp_path / "a.png", values, 4), channels=1)
    assert (picture.pixels[0] == 255).all()
    assert (picture.pixels[1:] == SCALED[1:, :, 0]).all()
    assert (picture.has_colour, picture.largest) == (False, values[..., 0].max())
    assert (read(tmp_path / "a.png", bits=16).pixels[:, 1:] == values[1:, :, 0] >> 8).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # as a camera that was held sideways
    content = (tmp_path / "a.png").read_bytes()
    exif = chunk(b"eXIf", turned.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "b.png").write_bytes(content.replace(chunk(b"IEND", b""), exif + chunk(b"IEND", b"")))
    assert (read(tmp_path / "b.png", channels=1).pixels == np.rot90(picture.pixels, -1)).all()


def test_colour_in_tiff(tmp_path: Path) -> None:
    entries = {256: 8, 257: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: 8, 279: 384}
    (tmp_path / "a.tif").write_bytes(
        tiff(*sorted({**entries, 258: 8 + 384}.items()), data=VALUES[..., :3].astype("<u2").tobytes() + b"\x10\0" * 3)
    )
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.rindex(struct.pack("<HHI", 258, 3, 1))
    content[place : place + 8] = struct.pack("<HHI", 258, 3, 3)  # three numbers, behind the pixels
    (tmp_path / "a.tif").write_bytes(content)
    assert (read(tmp_path / "a.tif").pixels == SCALED[..., :3].transpose(2, 0, 1)).all()


def test_the_transparent_level_is_no_gray(tmp_path: Path) -> None:
    values = VALUES[..., 0].copy()
    values[0] = 0xFFFF
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0xFFFF)
    picture = read(tmp_path / "a.png", channels=1)
    assert (picture.pixels[0] == 255).all()
    assert (picture.pixels[1:] == SCALED[1:, :, 0]).all()
    assert picture.largest == values[1:].max()

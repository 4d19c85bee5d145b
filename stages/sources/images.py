"""One image file, of whatever kind, to a square of uint8 pixels."""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stages.base.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
ANOTHER_SIZE = "another size"
LARGEST_FILE = 256 << 20  # bytes; it is read at once
SMALL_FILE = 1 << 20  # bytes; of a larger one the header is looked at before it is read
# What an EXIF orientation asks for.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF.
BITS, BLACK_OR_WHITE, TILE_WIDTH, TILE_HEIGHT = 258, 262, 322, 323


class UnusableError(Exception):
    """An image cannot be used. The message is the reason: its kind, then what is to be said of this one after a colon.

    It holds nothing that another machine would say differently, since rejected.csv keeps it.
    """


@dataclass(frozen=True)
class Wanted:
    """What an image is made into."""

    channels: int  # 1 or 3
    size: int  # side, pixels
    fit: str | None  # crop | pad | stretch; None: an image of another size is unusable
    max_pixels: int


def from_file(path: str, wanted: Wanted) -> npt.NDArray[np.uint8]:
    """Return uint8 (size, size), or (3, size, size) for three channels. Raises UnusableError, and
    InputError where memory is full, which says nothing of the image.

    As a viewer shows it: turned by its EXIF orientation, transparent parts white, the first of several frames, and 16
    bits scaled to 8. Call this within `limited`.
    """
    try:
        return pixels(_read(path, wanted.max_pixels), wanted)
    except MemoryError as error:
        raise InputError(f"{path}: there is too little memory to decode it") from error
    except Exception as error:  # a decoder may raise anything for a damaged file: KeyError, struct.error, ValueError
        raise UnusableError(_reason(error, wanted.max_pixels)) from error


def size_of(path: str, max_pixels: int) -> tuple[int, int] | None:
    """Return width and height as the file's header has them; None if there is no image. Call this within `limited`."""
    try:
        with _file(path) as (number, _):
            return _check(number, max_pixels)
    except Exception:  # as above; why, will be said when it is decoded
        return None


def pixels(image: Image.Image, wanted: Wanted) -> npt.NDArray[np.uint8]:
    """Return an opened image as `from_file` does."""
    square = (wanted.size, wanted.size)
    if wanted.fit is None and image.size != square:  # a turned square is one too, so the header tells
        raise UnusableError(f"{ANOTHER_SIZE}: {image.width} x {image.height}")
    if image.format in ("JPEG", "MPO"):  # the second is a JPEG with another behind it, as some phones write them
        # Decodes a photograph at 1/2, 1/4 or 1/8 where that leaves twice what is wanted.
        image.draft(None, (2 * wanted.size, 2 * wanted.size))
    image, mode = _opaque(_turned(image)), "L" if wanted.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != square:
        image = _squared(image, wanted.size, wanted.fit)
    array = np.asarray(image)
    return array if wanted.channels == 1 else array.transpose(2, 0, 1)


@contextmanager
def limited(max_pixels: int) -> Iterator[None]:
    """Make `max_pixels` Pillow's own limit too, which some formats reach before their size is known, and be quiet."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF and the like
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _file(path: str) -> Iterator[tuple[int, int]]:
    """Yield the opened file's number, and how many bytes it has. Raises UnusableError, or what `open` raises."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would have it wait for a writer
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError("not a file" + (": a folder" if stat.S_ISDIR(status.st_mode) else ""))
        if status.st_size > LARGEST_FILE:
            raise UnusableError(f"too large: {status.st_size:,} bytes, and {LARGEST_FILE:,} are read")
        yield number, status.st_size
    finally:
        os.close(number)


def _read(path: str, max_pixels: int) -> Image.Image:
    """Return the image with all of its file in memory. Raises as `_file` and `_opened` do."""
    with _file(path) as (number, n_bytes):
        if n_bytes > SMALL_FILE:
            _check(number, max_pixels)  # lest a film takes its size in memory to be refused
            os.lseek(number, 0, os.SEEK_SET)
        content = os.read(number, n_bytes)  # at once: Pillow's small pieces would each be a system call
    return _opened(io.BytesIO(content), max_pixels)


def _check(number: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height by the header of an open file. Raises as `_opened` does."""
    with open(number, "rb", closefd=False) as file:
        return _opened(file, max_pixels).size


def _opened(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Return the image with its header read. Raises UnusableError, or what Pillow raises."""
    image = Image.open(file, formats=FORMATS)
    n_pixels = image.width * image.height
    if image.format == "TIFF":
        # A tile, which is decoded whole, may be larger than the image.
        n_pixels = max(n_pixels, int(_tag(image, TILE_WIDTH, 0)) * int(_tag(image, TILE_HEIGHT, 0)))
    if n_pixels > max_pixels:
        raise UnusableError(_too_many(n_pixels, max_pixels))
    return image


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    tags = getattr(image, "tag_v2", {})
    return tags.get(number, default)


def _reason(error: Exception, max_pixels: int) -> str:
    """Return what an error says of the file."""
    match error:
        case UnusableError():
            return str(error)
        case FileNotFoundError() | NotADirectoryError():
            return "missing file"
        case UnidentifiedImageError():
            return (
                f"not an image: not {', '.join(FORMATS[:-1])} or {FORMATS[-1]},"
                " or of a kind that is not supported, or its start is damaged"
            )
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            found = re.search(r"\d+", str(error))
            return _too_many(int(found[0]) if found else 0, max_pixels)
        case OSError(errno=int()):
            return f"unreadable: {error.strerror}"
        case OSError():
            return f"cut or damaged: {error}"
    return f"cut or damaged: {type(error).__name__}"


def _too_many(n_pixels: int, max_pixels: int) -> str:
    return f"too many pixels: {n_pixels:,}, and prepare.max_pixels is {max_pixels:,}"


def _turned(image: Image.Image) -> Image.Image:
    """Return the decoded image as its EXIF orientation has it. TIFF's are turned by Pillow when they are decoded."""
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be read says nothing, and the pixels are good
        return image
    return image.transpose(turn) if turn is not None else image


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel, on white where it is transparent."""
    if image.mode in SIXTEEN_BITS:
        if _tag(image, BLACK_OR_WHITE, 1) == 0 or _tag(image, BITS, (16,)) == (12,):
            raise UnusableError("unsupported pixels: of 16 bits with 0 for white, or of 12 bits")
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnusableError("unsupported pixels: of more than 16 bits")
        eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
        if "transparency" in image.info:  # the level that is, of a PNG
            eight[values == image.info["transparency"]] = 255
        return Image.fromarray(eight)
    if image.mode not in EIGHT_BITS:
        raise UnusableError(f"unsupported pixels: Pillow's mode {image.mode}")
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return canvas


def _squared(image: Image.Image, size: int, fit: str | None) -> Image.Image:
    """Return the image with sides of `size`: its middle (crop), all of it on black (pad), or distorted (stretch)."""
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square

"""One image file, of whatever kind, to a square of uint8 pixels."""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
ANOTHER_SIZE = "another size"
LARGEST_FILE = 1 << 30  # bytes; it is read at once


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
    """Return uint8 (size, size), or (3, size, size) for three channels. Raises UnusableError.

    As a viewer shows it: turned by its EXIF orientation, transparent parts white, the first of several frames, and 16
    bits scaled to 8. Call this within `limited`.
    """
    try:
        return pixels(_opened(path, wanted.max_pixels), wanted)
    except Exception as error:  # a decoder may raise anything for a damaged file: KeyError, struct.error, MemoryError
        raise UnusableError(_reason(error, wanted.max_pixels)) from error


def size_of(path: str, max_pixels: int) -> tuple[int, int] | None:
    """Return width and height as the file's header has them; None if there is no image. Call this within `limited`."""
    try:
        return _opened(path, max_pixels).size
    except Exception:  # as above; why, will be said when it is decoded
        return None


def pixels(image: Image.Image, wanted: Wanted) -> npt.NDArray[np.uint8]:
    """Return an opened image as `from_file` does."""
    square = (wanted.size, wanted.size)
    if wanted.fit is None and image.size != square:  # a turned square is one too, so the header tells
        raise UnusableError(f"{ANOTHER_SIZE}: {image.width} x {image.height}")
    if image.format == "JPEG":
        # Decodes a photograph at 1/2, 1/4 or 1/8 where that leaves twice what is wanted.
        image.draft(None, (2 * wanted.size, 2 * wanted.size))
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image, mode = _opaque(image), "L" if wanted.channels == 1 else "RGB"
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


def _opened(path: str, max_pixels: int) -> Image.Image:
    """Return the image with its header read. Raises UnusableError, or what `open` or Pillow raise."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would have it wait for a writer
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError("not a file" + (": a folder" if stat.S_ISDIR(status.st_mode) else ""))
        if status.st_size > LARGEST_FILE:
            raise UnusableError(f"too large: {status.st_size:,} bytes, and {LARGEST_FILE:,} are read")
        content = os.read(number, status.st_size)  # at once: Pillow's small pieces would each be a system call
    finally:
        os.close(number)
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise UnusableError(_too_many(image.width * image.height, max_pixels))
    return image


def _reason(error: Exception, max_pixels: int) -> str:
    """Return what an error says of the file."""
    match error:
        case UnusableError():
            return str(error)
        case FileNotFoundError() | NotADirectoryError():
            return "missing file"
        case UnidentifiedImageError():
            return f"not an image: not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or its start is damaged"
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


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel, on white where it is transparent."""
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnusableError("unsupported pixels: of more than 16 bits")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
    if image.mode not in EIGHT_BITS:
        raise UnusableError(f"unsupported pixels: Pillow's mode {image.mode}")
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
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

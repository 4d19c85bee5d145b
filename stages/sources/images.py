"""One image file, of any supported format, to a square of uint8 pixels."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import IO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stages.base.errors import InputError
from stages.sources.decoders import plain, without_metadata
from stages.sources.levels import SIXTEEN_BITS, WHITE, eight_bits, low_bytes, tag
from stages.sources.rejections import Kind, UnusableError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
GRAY = ("1", "L", "LA", "La")
LARGEST_FILE = 256 << 20  # bytes; a file is read into memory as a whole
SMALL_FILE = 1 << 20  # bytes; the header of a larger one is checked before the file is read
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
TILE_WIDTH, TILE_HEIGHT = 322, 323


Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSpec:
    """What every image is made into: a square of uint8."""

    channels: int  # 1: grayscale, 3: colour
    size: int  # side, pixels
    fit: str | None  # crop | pad | stretch; None: an image of another size is rejected
    max_pixels: int  # of the image as it comes; one with more is rejected before it is decoded
    white: int = WHITE  # the value that becomes 255 in an image of 16 bits; one with larger values is rejected

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array: (size, size), or (3, size, size) for three channels."""
        return (self.size, self.size) if self.channels == 1 else (self.channels, self.size, self.size)


class Picture(NamedTuple):
    """One image, prepared."""

    pixels: npt.NDArray[np.uint8]  # of the spec's shape
    has_colour: bool  # that one channel, in `pixels`, does not show
    largest: int  # of its values of 16 bits; 0 where it has 8


def from_file(path: str, spec: ImageSpec) -> Picture:
    """Return the image in a file, prepared. Call this within `decoders`.

    It is as a viewer shows it: turned by its EXIF orientation, transparent parts white, the first of several frames,
    and 16 bits scaled to 8. Raises UnusableError, and InputError where memory is full, which is no fault of the image.
    """
    return _decoded(path, spec.max_pixels, lambda image: to_picture(image, spec))


def original_digest(path: str, max_pixels: int) -> bytes:
    """Return 16 bytes that tell apart images whose pixels differ before they are prepared. Otherwise as `from_file`."""
    return _decoded(path, max_pixels, _digest)


def _digest(image: Image.Image) -> bytes:
    image = _upright(image)
    if image.mode not in SIXTEEN_BITS:
        image = _opaque(image).convert("RGB")
    return blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).digest()


def _decoded(path: str, max_pixels: int, function: Callable[[Image.Image], Result]) -> Result:
    """Return what the function makes of the image in a file. Raises as `from_file` does."""
    try:
        content = _read(path, max_pixels)
        try:
            return function(_open_image(io.BytesIO(content), max_pixels))
        except UnusableError:
            raise
        except Exception:
            if (pixels := without_metadata(content)) == content:
                raise
            return function(_open_image(io.BytesIO(pixels), max_pixels))
    except UnusableError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: there is too little memory to decode it") from error
    except Exception as error:  # a decoder may raise anything for a damaged file: KeyError, struct.error, ValueError
        raise _unusable(error, max_pixels) from error


def size_of(path: str, max_pixels: int) -> tuple[int, int] | None:
    """Return width and height, pixels, as the file's header has them; None if there is no usable image.

    Call this within `decoders`.
    """
    try:
        with _open_file(path) as (number, _):
            return _check_header(number, max_pixels)
    except Exception:  # as in from_file, which finds the reason when the image is decoded
        return None


def to_picture(image: Image.Image, spec: ImageSpec) -> Picture:
    """Return an opened image as `from_file` does. Raises UnusableError, or whatever Pillow raises."""
    square = (spec.size, spec.size)
    if spec.fit is None and image.size != square:  # a turned square is one too, so the header is enough
        raise UnusableError(Kind.ANOTHER_SIZE, f"{image.width} x {image.height}")
    if image.format in ("JPEG", "MPO"):  # the second is a JPEG with another behind it, as some phones write them
        # Decodes a photograph at 1/2, 1/4 or 1/8 of its size where that is at least twice the prepared size.
        image.draft(None, (2 * spec.size, 2 * spec.size))
    low = low_bytes(image)
    image, largest = eight_bits(_upright(image), None if low is None else _upright(low), spec.white)
    image = _opaque(image)
    if spec.channels == 3:
        return Picture(_square(image, "RGB", spec).transpose(2, 0, 1), False, largest)
    if image.mode not in GRAY:
        colours = _square(image, "RGB", spec)
        if not (colours != colours[..., :1]).any():
            return Picture(colours[..., 0], False, largest)
    return Picture(_square(image, "L", spec), image.mode not in GRAY, largest)


@contextmanager
def _open_file(path: str) -> Iterator[tuple[int, int]]:
    """Yield the descriptor of the opened file, and its size in bytes. Raises UnusableError, or what `open` raises."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would otherwise wait for a writer
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError(Kind.NOT_A_FILE, "a folder" if stat.S_ISDIR(status.st_mode) else None)
        if status.st_size > LARGEST_FILE:
            raise UnusableError(Kind.TOO_LARGE, f"{status.st_size:,} bytes, and {LARGEST_FILE:,} are read")
        yield number, status.st_size
    finally:
        os.close(number)


def _read(path: str, max_pixels: int) -> bytes:
    """Return a file's content. Raises as `_open_file` and `_open_image` do."""
    with _open_file(path) as (number, n_bytes):
        if n_bytes > SMALL_FILE:
            # A large file that is no image, such as a film, is rejected without reading all of it.
            _check_header(number, max_pixels)
            os.lseek(number, 0, os.SEEK_SET)
        return os.read(number, n_bytes)  # at once: Pillow reads small pieces, and each would be a system call


def _check_header(number: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height by the header of an open file. Raises as `_open_image` does."""
    with open(number, "rb", closefd=False) as file:
        return _open_image(file, max_pixels).size


def _open_image(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Return the image with its header read. Raises UnusableError, or what Pillow raises."""
    try:
        image = Image.open(file, formats=FORMATS)
    except ValueError:  # a PNG with more text than Pillow reads
        file.seek(0)
        image = Image.open(io.BytesIO(without_metadata(file.read())), formats=FORMATS)
    n_pixels = image.width * image.height
    if image.format == "TIFF":
        # A tile, which is decoded as a whole, may be larger than the image.
        n_pixels = max(n_pixels, int(tag(image, TILE_WIDTH, 0)) * int(tag(image, TILE_HEIGHT, 0)))
    if n_pixels > max_pixels:
        raise _too_many(n_pixels, max_pixels)
    return image


def _unusable(error: Exception, max_pixels: int) -> UnusableError:
    """Return what an error of Python or Pillow says of the file."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return UnusableError(Kind.MISSING_FILE)
        case UnidentifiedImageError():
            names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            why = f"not {names}, or of a kind that is not supported, or its start is damaged"
            return UnusableError(Kind.NOT_AN_IMAGE, why)
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            found = re.search(r"\d+", str(error))
            return _too_many(int(found[0]) if found else 0, max_pixels)
        case OSError(errno=int()):
            return UnusableError(Kind.UNREADABLE, error.strerror)
        case OSError():
            return UnusableError(Kind.DAMAGED, plain(str(error)))
    return UnusableError(Kind.DAMAGED, plain(f"{type(error).__name__}: {error}"))


def _too_many(n_pixels: int, max_pixels: int) -> UnusableError:
    return UnusableError(Kind.TOO_MANY_PIXELS, f"{n_pixels:,}, and prepare.max_pixels is {max_pixels:,}")


def _upright(image: Image.Image) -> Image.Image:
    """Return the decoded image turned by its EXIF orientation. Pillow itself turns a TIFF when it decodes it."""
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be read does not matter: the pixels are good
        return image
    return image.transpose(turn) if turn is not None else image


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel on white where it is transparent. Raises UnusableError for another kind."""
    if image.mode not in EIGHT_BITS:
        raise UnusableError(Kind.UNSUPPORTED, f"Pillow's mode {image.mode}")
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return canvas


def _square(image: Image.Image, mode: str, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Return the image in this mode as an array, (size, size) or (size, size, 3)."""
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (spec.size, spec.size):
        image = _resized(image, spec.size, spec.fit)
    return np.asarray(image)


def _resized(image: Image.Image, size: int, fit: str | None) -> Image.Image:
    """Return a square with sides of `size`: the middle (crop), all of it on black (pad), or distorted (stretch)."""
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square

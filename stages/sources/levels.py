"""Images of 16 bits a channel, to 8."""

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.sources.rejections import Kind, UnusableError

WHITE = 0xFFFF  # the largest value that 16 bits hold
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # modes of Pillow
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # of two, by the end of a raw mode
GRAY_ALPHA = "LA;16B"  # the raw mode for which Pillow has none of the other bytes
BITS, BLACK_OR_WHITE = 258, 262  # tags of TIFF


def low_bytes(image: Image.Image) -> Image.Image | None:
    """Return the low bytes, which Pillow leaves out, of an image in colours of 16 bits, not decoded yet; else None.

    Gray with transparency of 16 bits, too, is in colours for Pillow. Raises whatever Pillow raises.
    """
    file, tiles = getattr(image, "fp", None), getattr(image, "tile", [])
    modes = {tile.args if isinstance(tile.args, str) else str(tile.args[0]) for tile in tiles}
    mode = modes.pop() if len(modes) == 1 and image.mode in ("RGB", "RGBA") else ""
    if not mode.endswith((";16B", ";16L", ";16N")) or not isinstance(file, io.BytesIO):
        return None
    low = Image.open(io.BytesIO(file.getvalue()), formats=[image.format or ""])
    other = "RGBA" if mode == GRAY_ALPHA else mode[:-1] + OTHER_BYTE[mode[-1]]
    low.tile = [tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in tiles]
    if mode != GRAY_ALPHA:
        return low
    gray = Image.merge("RGB", [low.getchannel("G")] * 3)  # of four bytes a pixel the second
    gray.info = low.info  # which way up it is
    return gray


def eight_bits(image: Image.Image, low: Image.Image | None, white: int) -> tuple[Image.Image, int]:
    """Return a decoded image with 8 bits a channel, and the largest of its values if it had 16, else 0.

    `low` are the low bytes of colours of 16 bits. The value `white`, at most 65,535, becomes 255. Raises UnusableError
    for larger ones.
    """
    if low is not None:
        high_part, low_part = (np.asarray(one.convert("RGB"), np.uint32) for one in (image, low))
        values = high_part << 8 | low_part
        if white == WHITE:
            return image, int(values.max())
        eight = Image.fromarray(_scaled(values, white))
        if image.mode == "RGBA":
            eight.putalpha(image.getchannel("A"))
        return eight, int(values.max())
    if image.mode not in SIXTEEN_BITS:
        return image, 0
    if tag(image, BLACK_OR_WHITE, 1) == 0 or tag(image, BITS, (16,)) == (12,):
        raise UnusableError(Kind.UNSUPPORTED, "of 16 bits with 0 for white, or of 12 bits")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > WHITE:
        raise UnusableError(Kind.UNSUPPORTED, "of more than 16 bits")
    # The level of a PNG that is transparent is no gray.
    clear = values == image.info.get("transparency", -1)
    values = np.where(clear, 0, values).astype(np.uint32)
    levels = _scaled(values, white)
    levels[clear] = 255
    return Image.fromarray(levels), int(values.max())


def tag(image: Image.Image, number: int, default: Any) -> Any:
    """Return the value of a tag of a TIFF, or the default if the image has none."""
    return getattr(image, "tag_v2", {}).get(number, default)


def _scaled(values: npt.NDArray[np.integer[Any]], white: int) -> npt.NDArray[np.uint8]:
    """Return the values of 16 bits as those of 8, rounded; `white` becomes 255."""
    if (largest := int(values.max())) > white:
        raise UnusableError(Kind.UNSUPPORTED, f"values up to {largest:,}, and prepare.sixteen_bits has {white:,}")
    return ((values * 255 + white // 2) // white).astype(np.uint8)

"""The side of the prepared images where `prepare.image_size` is null: that of the images themselves."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.params import PrepareParams
from stages.base.text import printable
from stages.sources.decoders import decoders
from stages.sources.images import ImageSpec, size_of
from stages.sources.levels import WHITE
from stages.sources.source import Source

COUNTED = 1000  # images whose sizes a message counts


def image_spec(params: PrepareParams, source: Source, raw: Path) -> ImageSpec:
    """Return what the images are made into, as far as that shows before they are decoded: grayscale, unless told.

    Raises InputError if their own size is wanted and is not square.
    """
    white = WHITE if params.sixteen_bits is None else 2**params.sixteen_bits - 1
    spec = partial(ImageSpec, params.channels or 1, max_pixels=params.max_pixels, white=white)
    if params.image_size is not None:
        return spec(params.image_size, params.fit)
    if source.images is not None:
        return spec(source.images.shape[1], None)
    # The first image that opens gives the size; decoding finds those of another one.
    name, (width, height) = next(_sizes(source, raw, params.max_pixels), ("", (1, 1)))
    if width != height:
        raise sizes_differ(source, raw, params.max_pixels, name)
    return spec(width, None)


def sizes_differ(source: Source, raw: Path, max_pixels: int, odd: str) -> InputError:
    """Return the error for images that are not all square and of one size, with the sizes of the first ones.

    `odd` is the name of an image of another size, in case the first ones are all alike.
    """
    sizes = list(islice(_sizes(source, raw, max_pixels), COUNTED))
    found = Counter(size for _, size in sizes).most_common()
    odd = next((name for name, size in sizes if size != found[0][0]), odd)
    first = f"; of the first {COUNTED:,}" if len(sizes) == COUNTED else ""
    counts = [f"{width} x {height} ({count:,} images)" for (width, height), count in found]
    return InputError(
        f"prepare.image_size: null, but the images of {raw} are not all square and of one size,"
        f" such as {printable(odd)}{first}: {listed(counts, 5)}."
        f" Set it to the side of the prepared images in pixels, e.g. {min(found[0][0])}"
    )


def _sizes(source: Source, raw: Path, max_pixels: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name of each file that has an image, and its width and height."""
    for name in source.rows["source"].iloc[source.usable]:
        with decoders(max_pixels):
            size = size_of(f"{raw}/{name}", max_pixels)
        if size:
            yield name, size

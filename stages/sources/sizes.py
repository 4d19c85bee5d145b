"""The side of the prepared images where `prepare.image_size` is null: that of the images themselves."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.params import PrepareParams
from stages.sources.images import ImageSpec, pixel_limit, size_of
from stages.sources.rejections import printable
from stages.sources.source import Source

COUNTED = 1000  # images whose sizes a message counts


def image_spec(params: PrepareParams, source: Source, raw: Path) -> ImageSpec:
    """Return what the images are made into. Raises InputError if their own size is wanted and is not square."""
    if params.image_size is not None:
        return ImageSpec(params.channels, params.image_size, params.fit, params.max_pixels)
    if source.images is not None:
        return ImageSpec(params.channels, source.images.shape[1], None, params.max_pixels)
    # The first image that opens gives the size; decoding finds those of another one.
    name, (width, height) = next(_sizes(source, raw, params.max_pixels), ("", (1, 1)))
    if width != height:
        raise sizes_differ(source, raw, params.max_pixels, name)
    return ImageSpec(params.channels, width, None, params.max_pixels)


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
    with pixel_limit(max_pixels):
        for name in source.rows["source"].iloc[source.usable]:
            if size := size_of(f"{raw}/{name}", max_pixels):
                yield name, size

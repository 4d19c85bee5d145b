"""The user's own images into one array: decoded again where the first pass shows that they need more.

What shows only when all are decoded: whether any has colour, and how much of their 16 bits they use.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import lines
from stages.base.params import PrepareParams
from stages.base.text import printable
from stages.sources.decoding import Facts, decode, file_reader, originals, paths
from stages.sources.images import ImageSpec
from stages.sources.levels import WHITE
from stages.sources.pixels import new_array
from stages.sources.rejections import Kind, Rejection, equal_images
from stages.sources.sharding import Layout, layout
from stages.sources.sizes import sizes_differ
from stages.sources.source import Source

Images = npt.NDArray[np.uint8]


def write_own(
    file: Path, source: Source, raw: Path, spec: ImageSpec, params: PrepareParams
) -> tuple[Images, Layout, ImageSpec, Source, list[str]]:
    """Write the images in the source's files into the new array `file`, with zeros for those that cannot be used.

    Return the array, (n, *spec.shape), in the order of its layout, this, the spec that it has, the source with all
    rejections, and lines of what the user should know. Raises InputError for images of several sizes where the spec
    does not say how to make them equal.
    """
    names, usable = source.rows["source"], source.usable
    files = paths(names, raw)
    until_colour = params.channels is None
    array, order = new_array(file, (len(names), *spec.shape)), layout_of(source, spec, params)
    facts, unusable = decode(
        array, file_reader(files, spec), usable, spec.max_pixels, until_colour, places=order.places
    )
    if until_colour and facts["colour"].any():
        spec = replace(spec, channels=3)
        array, order = new_array(file, (len(names), *spec.shape)), layout_of(source, spec, params)
        facts, unusable = decode(array, file_reader(files, spec), usable, spec.max_pixels, places=order.places)
    largest = int(facts["largest"].max(initial=0))
    if params.sixteen_bits is None and 0 < largest < 2**15:
        spec = replace(spec, white=2 ** largest.bit_length() - 1)
        again = facts["largest"] > 0
        facts[again], more = decode(
            array, file_reader(files, spec), usable[again], spec.max_pixels, places=order.places
        )
        unusable |= more
    if odd := [row for row, rejection in unusable.items() if rejection.kind is Kind.ANOTHER_SIZE]:
        raise sizes_differ(source, raw, spec.max_pixels, names[min(odd)])

    decoded = ~np.isin(usable, list(unusable))
    usable, facts = usable[decoded], facts[decoded]
    equal = equal_rows(source, raw, usable, facts, spec)
    source = replace(source, rejections=source.rejections | unusable | equal)
    array[order.places[list(source.rejections)]] = 0
    return array, order, spec, source, remarks(source, usable, facts, spec, params)


def layout_of(source: Source, spec: ImageSpec, params: PrepareParams) -> Layout:
    """Return where the source's images go, once they are as the spec says."""
    return layout(source.rows["source"].tolist(), math.prod(spec.shape), params.shard_mb)


def equal_rows(
    source: Source, raw: Path, usable: npt.NDArray[np.int64], facts: Facts, spec: ImageSpec
) -> dict[int, Rejection]:
    """Return the rejections of images that are equal to others, by row.

    The images are decoded again only where the prepared ones are equal. Prepared images of one colour are compared as
    they were before: a blank page and a page of small print are not one image because both become white.
    """
    digests = facts["digest"].copy()
    several = pd.DataFrame(digests).duplicated(keep=False).to_numpy()
    before = np.zeros_like(digests)
    before[several] = originals(source.rows["source"], raw, usable[several], spec.max_pixels)
    plain = several & facts["constant"]
    digests[plain] = before[plain]
    return equal_images(source.rows, usable, digests, before, spec.size)


def remarks(
    source: Source, usable: npt.NDArray[np.int64], facts: Facts, spec: ImageSpec, params: PrepareParams
) -> list[str]:
    """Return the lines about what usable images lose or lack."""

    names, size = source.rows["source"].iloc[usable].map(printable), spec.size

    def found(which: npt.NDArray[np.bool_], what: str) -> str:
        return f"{which.sum():,} of {len(usable):,} images {what}, such as {names[which].iloc[0]}"

    said = []
    if (colour := facts["colour"]).any():
        said.append(
            f"{found(colour, 'have colour')}, and prepare.channels: 1 makes them gray."
            " To keep it: prepare.channels=null"
        )
    largest = int(facts["largest"].max(initial=0))
    bits = 16 if params.sixteen_bits is None else params.sixteen_bits
    if 0 < largest < 2 ** (bits - 1):
        change = (
            f"so {spec.white:,} becomes white. For {WHITE:,} instead: prepare.sixteen_bits=16"
            if params.sixteen_bits is None
            else f"so they are dark with prepare.sixteen_bits: {bits}. For what they use: prepare.sixteen_bits=null"
        )
        sixteen = found(facts["largest"] > 0, f"have 16 bits, and values up to {largest:,} only")
        said.append(f"{sixteen}, {change}")
    if (constant := facts["constant"]).any():
        said += [
            f"{constant.sum():,} of {len(usable):,} images are of one colour at {size} pixels:",
            *lines(names[constant]),
        ]
    return said

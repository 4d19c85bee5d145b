"""Prepare: raw images to arrays that training can memory-map, split once.

    python -m stages.prepare data/raw data/prepared

writes, for the source that params.yaml names,

    images.npy      uint8 (n, h, w), or (n, 3, h, w) for three channels, in the source's order; zeros where rejected
    manifest.csv    one row an image: index in images.npy, split (train, valid or test), label, source
    dataset.json    class names, image size, mean and standard deviation of the training split, digest of each split
    rejected.csv    source, label, split and reason of what `prepare.on_bad: skip` left out, if anything

Digits take 2 s, Fashion-MNIST 5 s, on two cores of an x86-64 server. Memory does not grow with the pixels.
"""

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import replacing, rounded, write_csv, write_json
from stages.base.params import PrepareParams, load_params
from stages.sources import decoding, images, rejected
from stages.sources.images import Wanted
from stages.sources.loading import load_source
from stages.sources.pixels import digest, mean_and_std
from stages.sources.source import Source
from stages.sources.splits import SPLITS, split_of, too_few

SIZES = 1000  # images whose sizes a message counts


def main() -> None:
    arguments = cli.paths(
        "stages.prepare",
        __doc__,
        raw="folder with what you bring, e.g. data/raw",
        prepared="folder to write, e.g. data/prepared",
    )
    prepare(load_params().prepare, **arguments)


def prepare(params: PrepareParams, raw: Path, prepared: Path) -> None:
    """Write the folder `prepared`. Raises InputError for raw files that are missing or wrong."""
    source = load_source(params, raw)
    if source.images is None:
        check_apart(raw, prepared)
    rows, wanted = source.rows, wanted_of(params, source, raw)
    with replacing(prepared) as folder:
        folder.mkdir()

        # The pixels, and with them what is wrong with single images.
        array = made(folder / "images.npy", (len(rows), *[3] * (params.channels == 3), wanted.size, wanted.size))
        decoded = np.flatnonzero(rows["reason"] == "")
        read = file_reader(rows, raw, wanted) if source.images is None else partial(from_array, source.images, wanted)
        digests, reasons = decoding.decode(folder / "images.npy", read, decoded, params.max_pixels)
        if another := [row for row, reason in reasons.items() if reason.startswith(images.ANOTHER_SIZE)]:
            raise sizes_differ(rows, raw, params.max_pixels, rows["source"][min(another)])
        rows.loc[list(reasons), "reason"] = list(reasons.values())
        if source.images is None:  # a published set is taken as it is
            rejected.mark_equal(rows, digests, decoded)
        array[rows["reason"] != ""] = 0

        # The splits; those that the source has are kept.
        kept = rows[rows["reason"] == ""]
        label = np.array(pd.Categorical(kept["label"], source.classes).codes, np.int64)
        fractions = {"valid": params.valid_fraction, "test": params.test_fraction}
        missing = {name: fraction for name, fraction in fractions.items() if name not in set(rows["split"])}
        split = split_of(label, kept["split"].to_numpy(), missing, params.seed)

        # All that is wrong is said at once.
        said, few = rejected.summary(rows, raw), too_few(split, label, source.classes, missing)
        if few or (said and params.on_bad == "error"):
            hint = ["Mend them, or leave them out: prepare.on_bad=skip"] if said and params.on_bad == "error" else []
            raise InputError("\n".join([*said, *few, *hint]))

        index = kept.index.to_numpy()
        of_split = {name: index[split == name] for name in SPLITS}
        mean, std = mean_and_std(array, of_split["train"])
        facts = {
            "source": params.source,
            "classes": source.classes,
            "channels": params.channels,
            "image_size": wanted.size,
            "mean": [rounded(value) for value in mean],
            "std": [rounded(value) for value in std],
            "sizes": {name: len(of_split[name]) for name in SPLITS},
            "sha256": {name: digest(array, of_split[name], label[split == name]) for name in SPLITS},
        } | ({"rejected": rejected.counts(rows)} if said else {})
        write_json(folder / "dataset.json", facts)
        manifest = {"index": index, "split": split, "label": label, "source": kept["source"]}
        write_csv(folder / "manifest.csv", pd.DataFrame(manifest))
        if said:
            write_csv(folder / "rejected.csv", rows[rows["reason"] != ""][["source", "label", "split", "reason"]])
    if said:
        print("\n".join(said), file=sys.stderr)
    sizes = ", ".join(f"{name} {len(of_split[name]):,}" for name in SPLITS)
    print(f"prepared {len(kept):,} images of {params.source}: {sizes}")


def check_apart(raw: Path, prepared: Path) -> None:
    """Raise InputError if one of the folders is in the other: the one would be read, or replaced, with the other."""
    one, other = raw.resolve(), prepared.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(f"prepare.path: {str(raw)!r} and {prepared}, which is written, should not contain each other")


def wanted_of(params: PrepareParams, source: Source, raw: Path) -> Wanted:
    """Return what the images are made into. Raises InputError where their own size is wanted, and is not square."""
    if params.image_size is not None:
        return Wanted(params.channels, params.image_size, params.fit, params.max_pixels)
    if source.images is not None:
        return Wanted(params.channels, source.images.shape[1], None, params.max_pixels)
    # That of the first which opens: others are found when they are decoded.
    name, (width, height) = next(own_sizes(source.rows, raw, params.max_pixels), ("", (1, 1)))
    if width != height:
        raise sizes_differ(source.rows, raw, params.max_pixels, name)
    return Wanted(params.channels, width, None, params.max_pixels)


def own_sizes(rows: pd.DataFrame, raw: Path, max_pixels: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name of each file that has an image, and its width and height."""
    with images.limited(max_pixels):
        for name in rows.loc[rows["reason"] == "", "source"]:
            if size := images.size_of(f"{raw}/{name}", max_pixels):
                yield name, size


def sizes_differ(rows: pd.DataFrame, raw: Path, max_pixels: int, odd: str) -> InputError:
    """Return what to say of images that are not square, or not alike. `odd` is one, should it not be of the first."""
    sizes = list(islice(own_sizes(rows, raw, max_pixels), SIZES))
    found = Counter(size for _, size in sizes).most_common()
    odd = next((name for name, size in sizes if size != found[0][0]), odd)
    first = f" of the first {SIZES:,}" if len(sizes) == SIZES else ""
    listed = ", ".join(f"{width} x {height} ({count:,} images)" for (width, height), count in found[:5])
    return InputError(
        f"prepare.image_size: null, but the images of {raw} are not all square and of one size,"
        f" such as {rejected.shown(odd)}{first and ';'}{first}: {listed}"
        + (f" and {len(found) - 5:,} other sizes" if len(found) > 5 else "")
        + f". Set it to the side, in pixels, that they shall have, e.g. {min(found[0][0])}"
    )


def file_reader(rows: pd.DataFrame, raw: Path, wanted: Wanted) -> decoding.Reader:
    """Return the function that reads the file of a row."""
    return partial(from_files, rows["source"].tolist(), f"{raw}/", wanted)


def from_files(names: list[str], folder: str, wanted: Wanted, row: int) -> npt.NDArray[np.uint8]:
    return images.from_file(folder + names[row], wanted)


def from_array(array: npt.NDArray[np.uint8], wanted: Wanted, row: int) -> npt.NDArray[np.uint8]:
    image: npt.NDArray[np.uint8] = array[row]
    is_so_already = wanted.channels == 1 and wanted.size == len(image)
    return image if is_so_already else images.pixels(Image.fromarray(image), wanted)


def made(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the memory-mapped array of a new file, zeros. Raises InputError where the disk has no room for it."""
    n_bytes, free = math.prod(shape), shutil.disk_usage(file.parent).free
    if n_bytes > free:
        raise InputError(
            f"the prepared images, {' x '.join(map(str, shape))}, take {n_bytes:,} bytes,"
            f" and {file.parent} has {free:,} free; prepare.image_size is their side"
        )
    array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    return array


if __name__ == "__main__":
    cli.run(main)

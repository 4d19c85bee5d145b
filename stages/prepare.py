"""Prepare: raw images to arrays that training can memory-map, split once.

    python -m stages.prepare data/prepared

reads what `prepare.path` in params.yaml names, and writes, for the source named there,

    images.npy      uint8 (n, h, w), or (n, 3, h, w) for three channels, in the source's order; zeros where rejected
    manifest.csv    one row an image: index in images.npy, split (train, valid or test), label, source
    images-00000.npy, …, shards.csv, manifest.parquet
                    with `prepare.shard_mb`, in place of these two: the images in an order that a hash of their names
                    gives; one row a shard: file, rows, sha256; and the manifest, its index in the shards end to end.
                    With `prepare.shards_to` the shards are there, under their sha256, and the table names their places
    dataset.json    class names, image size, how an image is read, mean and standard deviation of the training split,
                    of each split the number of images of each class and a digest
    rejected.csv    source, label, split and reason of what `prepare.on_bad: skip` left out, if anything; where it ends
                    prepare instead, this file alone, beside the folder

Digits take 2 s, Fashion-MNIST 2 s, on two cores of an x86-64 server. Memory does not grow with the pixels.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm import tqdm

from stages.base import cli
from stages.base.errors import InputError, listed
from stages.base.files import replacing, rounded, write_csv, write_json, write_parquet
from stages.base.params import PrepareParams, load_params
from stages.base.storage import Cache, check_place, check_writable, on_disk
from stages.base.text import printable, say, warn
from stages.sources.images import ImageSpec, to_picture
from stages.sources.loading import load_source
from stages.sources.missing import near_misses
from stages.sources.own import layout_of, write_own
from stages.sources.pixels import digest, mean_and_std, new_array
from stages.sources.rejections import counts, missing_files, rejected_rows, summary
from stages.sources.sharding import cut
from stages.sources.sizes import image_spec
from stages.sources.source import Source, limited
from stages.sources.splits import SPLITS, assign_splits, incomplete_classes
from stages.tracking import data_in_git

MANIFEST = {"index": "int64", "split": "string", "label": "int64", "source": "string"}  # of pyarrow
UNEQUAL = 10  # times as many training images of one class as of another, beyond which it is said


def main() -> None:
    """Prepare with the params of params.yaml into the folder on the command line."""
    arguments = cli.paths("stages.prepare", __doc__, prepared="folder to write, e.g. data/prepared")
    params = load_params().prepare
    for path in (Path(params.path), Path(params.exclude)):
        data_in_git.check(path, os.environ)
    prepare(params, **arguments)


def prepare(params: PrepareParams, prepared: Path) -> None:
    """Write the folder `prepared`.

    Raises InputError if raw files are missing or wrong, and writes nothing but their list, rejected.csv, beside it.
    """
    listing = prepared.with_name("rejected.csv")
    check_is_kept(Path(params.exclude), listing, prepared)
    if params.shards_to is not None:
        check_place("prepare.shards_to", params.shards_to)
        if params.shard_mb is None:
            raise InputError(f"prepare.shards_to: {params.shards_to!r} is for shards, with prepare.shard_mb, e.g. 64")
        if folder := on_disk(params.shards_to):
            for other in (prepared, Path(params.path), Cache.from_environment(os.environ).folder):
                check_apart("shards_to", folder, other)
    listing.unlink(missing_ok=True)
    source, raw = limited(load_source(params), params.limit, params.seed), Path(params.path)
    if source.images is None:
        check_apart("path", raw, prepared)
    spec = image_spec(params, source, raw)
    if params.shards_to is not None:
        check_writable(params.shards_to)
    with replacing(prepared) as folder:
        folder.mkdir()
        if source.images is None:
            array, layout, spec, source, remarks = write_own(folder / "images.npy", source, raw, spec, params)
        else:
            layout = layout_of(source, spec, params)
            array, remarks = write_published(folder / "images.npy", source.images, spec, layout.places), []

        for remark in remarks:
            warn(remark)

        # Splits that the source has are kept.
        fractions = {"valid": params.valid_fraction, "test": params.test_fraction}
        shares = {name: fraction for name, fraction in fractions.items() if name not in source.splits}
        manifest = split_images(source, shares, params.seed)
        manifest["index"] = layout.places[manifest["index"]]
        manifest = manifest.sort_values("index", ignore_index=True)

        # One message names all that is wrong.
        rejected = summary(source.rows, source.rejections, raw)
        if params.source == "csv":
            rejected += near_misses(missing_files(source.rows, source.rejections), raw, params.csv)
        rejected += [
            f"No image of the split {name} can be used: prepare.{name}_fraction takes {share:g} of each class instead"
            for name, share in shares.items()
            if (source.rows["split"] == name).any()
        ]
        incomplete = incomplete_classes(manifest, source.classes, shares)
        if incomplete and params.limit is not None:
            incomplete.append(f"prepare.limit leaves {params.limit} images of each class")
        if incomplete and source.n_excluded:
            incomplete.append(f"prepare.exclude leaves {source.n_excluded:,} images out")
        hint = ["Correct them, or leave them out: prepare.on_bad=skip"] if rejected and params.on_bad == "error" else []
        table = rejected_rows(source.rows, source.rejections)
        if incomplete or hint:
            if rejected:
                with replacing(listing) as file:
                    write_csv(file, table)
                rejected.append(f"All of them are listed in {listing}")
            raise InputError("\n".join([*rejected, *incomplete, *hint]))

        facts = facts_of(array, manifest, len(source.classes)) | {
            "source": params.source,
            "classes": source.classes,
            "channels": spec.channels,
            "image_size": spec.size,
            # For images that come later, and may be of another size where all of these are of one.
            "decoding": {"fit": params.fit, "max_pixels": spec.max_pixels, "white": spec.white},
        }
        if rejected:
            facts["rejected"] = counts(source.rejections)
            write_csv(folder / "rejected.csv", table)
        if source.n_excluded:
            facts["excluded"] = source.n_excluded
        write_json(folder / "dataset.json", facts)
        if params.shard_mb is None:
            write_csv(folder / "manifest.csv", manifest)
        else:
            write_parquet(folder / "manifest.parquet", manifest, MANIFEST)
            write_csv(folder / "shards.csv", cut(folder / "images.npy", array, layout.rows, params.shards_to))
    if rejected:
        warn("\n".join(rejected))
    sizes = ", ".join(f"{name} {size:,}" for name, size in facts["sizes"].items())
    say(f"prepared {len(manifest):,} images of {params.source}: {sizes}")
    if source.n_excluded:
        say(f"left out {source.n_excluded:,} images that {params.exclude} names")
    say_counts(dict(zip(source.classes, facts["counts"]["train"], strict=True)))


def say_counts(of_classes: dict[str, int]) -> None:
    """Say how many images of each class there are to train on, and warn if they are very unequal."""
    say(f"of each class in train: {listed(f'{printable(name)} {count:,}' for name, count in of_classes.items())}")
    rare, common = min(of_classes, key=of_classes.__getitem__), max(of_classes, key=of_classes.__getitem__)
    if of_classes[common] > UNEQUAL * of_classes[rare]:
        warn(
            f"warning: {printable(common)} has {of_classes[common]:,} images to train on, {printable(rare)}"
            f" {of_classes[rare]:,}; train.balance evens that out, and train.monitor: macro_f1 rates all alike"
        )


def check_is_kept(exclude: Path, listing: Path, prepared: Path) -> None:
    """Raise InputError if what is to be excluded stands in a file that is about to be replaced."""
    if exclude.resolve() == listing.resolve() or exclude.resolve().is_relative_to(prepared.resolve()):
        raise InputError(
            f"prepare.exclude: {str(exclude)!r} is written by prepare itself; copy it, for instance to data/exclude.csv"
        )


def check_apart(name: str, given: Path, other: Path) -> None:
    """Raise InputError if one folder is in the other: writing would change what is read, or replace it."""
    one, two = given.resolve(), other.resolve()
    if one.is_relative_to(two) or two.is_relative_to(one):
        raise InputError(f"prepare.{name}: {str(given)!r} and {other} should not contain each other")


def write_published(
    file: Path, published: npt.NDArray[np.uint8], spec: ImageSpec, places: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Write the images of a published set, (n, h, w), to their places, (n,), in the new array `file`.

    Return it, (n, *spec.shape).
    """
    array = new_array(file, (len(published), *spec.shape))
    if published.shape == array.shape:
        array[places] = published
    else:
        resizing = tqdm(published, unit=" images", desc="resizing", disable=None, leave=False)
        for place, image in zip(places, resizing, strict=True):
            array[place] = to_picture(Image.fromarray(image), spec).pixels
    return array


def split_images(source: Source, shares: dict[str, float], seed: int) -> pd.DataFrame:
    """Return the manifest: index, split, label (the number of the class) and source of each image that is kept.

    `shares` and `seed` are as in `assign_splits`.
    """
    index = source.usable
    kept = source.rows.iloc[index]
    label = np.array(pd.Categorical(kept["label"], source.classes).codes, np.int64)
    split = assign_splits(label, kept["split"].to_numpy(), shares, seed)
    return pd.DataFrame({"index": index, "split": split, "label": label, "source": kept["source"].to_numpy()})


def facts_of(array: npt.NDArray[np.uint8], manifest: pd.DataFrame, n_classes: int) -> dict[str, Any]:
    """Return what dataset.json says of the images: the training split's mean and deviation, counts and digests."""
    of_split = {name: manifest[manifest["split"] == name] for name in SPLITS}
    mean, std = mean_and_std(array, of_split["train"]["index"].to_numpy())
    return {
        "mean": [rounded(value) for value in mean],
        "std": [rounded(value) for value in std],
        "sizes": {name: len(images) for name, images in of_split.items()},
        "counts": {
            name: np.bincount(images["label"], minlength=n_classes).tolist() for name, images in of_split.items()
        },
        "sha256": {
            name: digest(array, images["index"].to_numpy(), images["label"].to_numpy())
            for name, images in of_split.items()
        },
    }


if __name__ == "__main__":
    cli.run(main)

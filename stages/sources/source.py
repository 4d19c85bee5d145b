"""What is known of a set of images before any file of the user is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.sources.rejections import Rejection

Row = tuple[str, str, str, Rejection | None]  # source, label and split of an image, and why it cannot be used


@dataclass(frozen=True)
class Source:
    """A set of images before any file of the user is decoded.

    The rows are n, one an image, numbered from 0, with columns of text:

    source    path of the image's file, from the raw folder on, or the image's name where there are no files
    label     its class; "" where it has none
    split     train, valid or test; "" where the split is not made yet
    """

    rows: pd.DataFrame
    rejections: dict[int, Rejection]  # why images cannot be used, by their rows' numbers, as far as is known
    classes: list[str]  # the classes' names, in the order of their numbers
    images: npt.NDArray[np.uint8] | None  # (n, h, w), grayscale; None: `source` in the rows names the files
    n_excluded: int = 0  # images that are no rows, since the user wants them left out

    @property
    def usable(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows whose images are not rejected, (m,), ascending."""
        return np.setdiff1d(np.arange(len(self.rows)), list(self.rejections))

    @property
    def splits(self) -> set[str]:
        """Return the splits that the source brings: those of its usable images."""
        return set(self.rows["split"].iloc[self.usable]) - {""}


def limited(source: Source, limit: int | None, seed: int) -> Source:
    """Return the source with `limit` usable images of each class, and of each split that it brings; None: with all.

    What is rejected already stays: it is to be said.
    """
    usable = source.usable
    if limit is None or not len(usable):
        return source
    rows, random = source.rows.iloc[usable], np.random.RandomState(seed)  # whose stream is frozen
    alike = sorted(rows.groupby(["label", "split"]).indices.items())
    chosen = [usable[random.permutation(places)[:limit]] for _, places in alike]
    return only(source, np.sort(np.concatenate([*chosen, np.array([*source.rejections], np.int64)])))


def only(source: Source, kept: npt.NDArray[np.int64]) -> Source:
    """Return the source with the rows of these numbers alone, ascending."""
    places = {int(row): place for place, row in enumerate(kept)}
    return Source(
        source.rows.iloc[kept].reset_index(drop=True),
        {places[row]: rejection for row, rejection in source.rejections.items() if row in places},
        source.classes,
        None if source.images is None else source.images[kept],
        source.n_excluded,
    )


def table(rows: Sequence[Row]) -> tuple[pd.DataFrame, dict[int, Rejection]]:
    """Return the rows and the rejections of a Source."""
    content = pd.DataFrame([row[:3] for row in rows], columns=["source", "label", "split"], dtype=object)
    return content, {number: row[3] for number, row in enumerate(rows) if row[3]}

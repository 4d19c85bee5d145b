"""Images that cannot be used: the reasons, which images are equal, and the message about all of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.base.errors import lines
from stages.base.text import printable

Digests = npt.NDArray[np.uint64]
# Of equal images the copy in the first of these splits stays.
KEPT = {"test": 0, "valid": 1, "train": 2, "": 2}


class Kind(StrEnum):
    """Why an image cannot be used, in the words of rejected.csv and dataset.json."""

    ANOTHER_SIZE = "another size"
    CONTRADICTION = "contradiction"
    DAMAGED = "cut or damaged"
    DUPLICATE = "duplicate"
    LEAK = "leak"
    MISSING_FILE = "missing file"
    NO_LABEL = "no label"
    NO_PATH = "no path"
    NOT_A_FILE = "not a file"
    NOT_A_LABEL = "not a label"
    NOT_A_NAME = "not a name"
    NOT_AN_IMAGE = "not an image"
    OUTSIDE = "outside the folder"
    TOO_LARGE = "too large"
    TOO_MANY_PIXELS = "too many pixels"
    UNKNOWN_LABEL = "unknown label"
    UNKNOWN_SPLIT = "unknown split"
    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported pixels"


@dataclass(frozen=True)
class Rejection:
    """Why one image cannot be used.

    The detail holds nothing that differs from machine to machine, such as a path of the raw folder or an address in
    memory, since rejected.csv keeps it.
    """

    kind: Kind
    detail: str | None = None  # None: the kind says it all

    def __str__(self) -> str:
        """Return the reason as rejected.csv has it."""
        return self.kind if self.detail is None else f"{self.kind}: {self.detail}"

    def in_words(self, words: str) -> "Rejection":
        """Return it with what the decoder said of a file that it could not decode."""
        if not words or self.kind not in (Kind.DAMAGED, Kind.NOT_AN_IMAGE):
            return self
        return Rejection(self.kind, f"{self.detail}; {words}" if self.detail else words)


class UnusableError(Exception):
    """One image cannot be used; `rejection` says why."""

    def __init__(self, kind: Kind, detail: str | None = None) -> None:
        self.rejection = Rejection(kind, detail)
        super().__init__(str(self.rejection))


def equal_images(
    rows: pd.DataFrame, usable: npt.NDArray[np.int64], digests: Digests, originals: Digests, size: int
) -> dict[int, Rejection]:
    """Return the rejection of each image that another one makes superfluous or doubtful, by its row's number.

    `digests`, (len(usable), 2), are of the prepared pixels, of `size` a side, of the rows with the numbers `usable`,
    (n,); `originals` of those before. Of equal images of one class all but one are duplicates, or a leak where the
    kept one is in another split. Of equal images of several classes nobody knows which label is right, so none is kept.
    """
    seen = pd.DataFrame(np.hstack([digests, originals]), index=usable)
    seen = seen[seen.duplicated([0, 1], keep=False)]
    original = dict(zip(seen.index, zip(seen[2], seen[3], strict=True), strict=True))
    source, label, split = (rows[column].tolist() for column in ("source", "label", "split"))
    rejections: dict[int, Rejection] = {}
    for group in seen.groupby([0, 1], sort=False).groups.values():
        first_of_class = {label[row]: row for row in reversed(group)}
        first, second = [*sorted(first_of_class.values())[:2], None][:2]
        kept = min(group, key=lambda row: (KEPT[split[row]], row))
        for row in group:
            other = kept if second is None else first if label[row] != label[first] else second
            equal = "equal to" if original[row] == original[other] else f"equal at {size} pixels to"
            equal += f" {source[other]}"
            if second is not None:
                rejections[row] = Rejection(Kind.CONTRADICTION, f"{equal}, which is {label[other]}")
            elif split[row] != split[kept]:
                rejections[row] = Rejection(Kind.LEAK, f"{equal}, in {split[kept]}")
            elif row != kept:
                rejections[row] = Rejection(Kind.DUPLICATE, equal)
    return rejections


def counts(rejections: Mapping[int, Rejection]) -> dict[str, int]:
    """Return how many images are rejected for each kind of reason, sorted by the kind's name."""
    kinds = Counter(rejection.kind.value for rejection in rejections.values())
    return dict(sorted(kinds.items()))


def rejected_rows(rows: pd.DataFrame, rejections: Mapping[int, Rejection]) -> pd.DataFrame:
    """Return the table of rejected.csv: source, label, split and reason of each rejected image."""
    numbers = sorted(rejections)
    return rows.loc[numbers].assign(reason=[str(rejections[number]) for number in numbers])


def missing_files(rows: pd.DataFrame, rejections: Mapping[int, Rejection]) -> list[str]:
    """Return the names of the files that are not there."""
    return [rows["source"][row] for row in sorted(rejections) if rejections[row].kind is Kind.MISSING_FILE]


def summary(rows: pd.DataFrame, rejections: Mapping[int, Rejection], raw: Path) -> list[str]:
    """Return the lines that say how many images are rejected, and the first of them; no lines if none is."""
    if not rejections:
        return []
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts(rejections).items())
    reasons = [
        f"{printable(row.source)}: {printable(row.reason)}" for row in rejected_rows(rows, rejections).itertuples()
    ]
    return [f"{len(rejections):,} of {len(rows):,} images of {raw} cannot be used ({kinds}):", *lines(reasons)]

"""Images that cannot be used: which are equal, and what is said of all of them at once."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

FIRST = 20  # rejected images that a message lists
# Of equal images the copy in the first of these splits stays.
KEPT = {"test": 0, "valid": 1, "train": 2, "": 2}


def mark_equal(rows: pd.DataFrame, digests: npt.NDArray[np.uint64], decoded: npt.NDArray[np.int64]) -> None:
    """Give the reason to those of the `rows` that another image makes superfluous or doubtful.

    `digests`, (len(decoded), 2), are of the pixels as they were prepared, for the rows with these numbers. Of equal
    images of one class all but one are duplicates, or a leak where the kept one is in another split; of those of
    several classes nobody knows which is right, and none can stay.
    """
    usable = (rows["reason"] == "").to_numpy()[decoded]
    seen = pd.DataFrame(digests[usable], index=decoded[usable])
    seen = seen[seen.duplicated(keep=False)]
    source, label, split = (rows[column].tolist() for column in ("source", "label", "split"))
    reasons: dict[int, str] = {}
    for group in seen.groupby([0, 1], sort=False).groups.values():
        first = {label[row]: row for row in reversed(group)}  # of each class
        if len(first) > 1:
            one, other = sorted(first.values())[:2]
            for row in group:
                shown = one if label[row] != label[one] else other
                reasons[row] = f"contradiction: equal to {source[shown]}, which is {label[shown]}"
            continue
        kept = min(group, key=lambda row: (KEPT[split[row]], row))
        for row in group.drop(kept):
            leak = split[row] != split[kept]
            equal = f"equal to {source[kept]}"
            reasons[row] = f"leak: {equal}, in {split[kept]}" if leak else f"duplicate: {equal}"
    rows.loc[list(reasons), "reason"] = list(reasons.values())


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """Return how many rows are rejected for each kind of reason, by its name."""
    kinds = rows.loc[rows["reason"] != "", "reason"].str.partition(":")[0]
    return {str(kind): int(count) for kind, count in sorted(kinds.value_counts().items())}


def summary(rows: pd.DataFrame, raw: Path) -> list[str]:
    """Return the lines that say how many rows are rejected, and the first of them; none if none is."""
    wrong = rows[rows["reason"] != ""]
    if wrong.empty:
        return []
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts(rows).items())
    listed = [f"  {shown(row.source)}: {shown(row.reason)}" for row in wrong.head(FIRST).itertuples()]
    more = [f"  and {len(wrong) - FIRST:,} more"] if len(wrong) > FIRST else []
    return [f"{len(wrong):,} of {len(rows):,} images of {raw} cannot be used ({kinds}):", *listed, *more]


def shown(text: object) -> str:
    """Return text as it is, or with escapes where a terminal would not show it."""
    return str(text) if str(text).isprintable() else repr(text)

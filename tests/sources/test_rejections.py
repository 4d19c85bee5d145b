import time
from pathlib import Path

import numpy as np
import pandas as pd

from stages.sources.rejections import Kind, Rejection, counts, equal_images, rejected_rows, summary


def rows(label: list[str], split: list[str] | None = None) -> pd.DataFrame:
    names = [f"{row}.png" for row in range(len(label))]
    return pd.DataFrame({"source": names, "label": label, "split": split or ""}, dtype=object)


def reasons(table: pd.DataFrame, pixels: list[int]) -> list[str]:
    """Return the reason for each of the rows, whose images have these pixels; "" for one that is kept."""
    digests = np.array([[pixel, 0] for pixel in pixels], np.uint64)
    rejections = equal_images(table, np.arange(len(pixels)), digests, digests, 8)
    return [str(rejections.get(row, "")) for row in range(len(pixels))]


def test_all_but_one_of_equal_images_are_rejected() -> None:
    assert reasons(rows(list("aabab")), [1, 2, 3, 1, 3]) == [
        "",
        "",
        "",
        "duplicate: equal to 0.png",
        "duplicate: equal to 2.png",
    ]


def test_no_image_of_two_classes_stays() -> None:
    assert reasons(rows(list("aba")), [1, 1, 1]) == [
        "contradiction: equal to 1.png, which is b",
        "contradiction: equal to 0.png, which is a",
        "contradiction: equal to 1.png, which is b",
    ]


def test_leaks_name_the_pair() -> None:
    assert reasons(rows(list("aaaa"), ["train", "valid", "test", "test"]), [1, 1, 1, 1]) == [
        "leak: equal to 2.png, in test",
        "leak: equal to 2.png, in test",
        "",
        "duplicate: equal to 2.png",
    ]


def test_rows_that_were_not_decoded_are_equal_to_none() -> None:
    digests = np.array([[1, 0], [1, 0]], np.uint64)
    assert equal_images(rows(list("aaaa")), np.array([1, 3]), digests, digests, 8).keys() == {3}


def test_twenty_are_listed_and_all_are_counted() -> None:
    table = rows(["a"] * 50)
    assert summary(table, {}, Path("set")) == []
    rejections = dict.fromkeys([28, 29], Rejection(Kind.MISSING_FILE))
    rejections |= dict.fromkeys(range(5, 28), Rejection(Kind.NOT_AN_IMAGE, "at all"))
    assert counts(rejections) == {"missing file": 2, "not an image": 23}
    said = summary(table, rejections, Path("set"))
    assert said[0] == "25 of 50 images of set cannot be used (missing file 2, not an image 23):"
    assert said[1] == "  5.png: not an image: at all"
    assert said[-1] == "  and 5 more"
    assert len(said) == 22


def test_the_reason_is_the_kind_and_what_is_particular() -> None:
    rejections = {1: Rejection(Kind.MISSING_FILE), 0: Rejection(Kind.UNKNOWN_LABEL, "c")}
    table = rejected_rows(rows(["c", "a", "b"], ["test", "", ""]), rejections)
    assert table.columns.tolist() == ["source", "label", "split", "reason"]
    assert table.to_numpy().tolist() == [["0.png", "c", "test", "unknown label: c"], ["1.png", "a", "", "missing file"]]


def test_many_equal_images_take_no_time() -> None:
    start = time.perf_counter()
    assert reasons(rows(["a", "b"] * 50_000), [0] * 100_000).count("") == 0
    assert reasons(rows(["a"] * 100_000), [*range(50_000)] * 2).count("") == 50_000
    assert time.perf_counter() - start < 30

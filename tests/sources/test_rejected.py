import time
from pathlib import Path

import numpy as np
import pandas as pd

from stages.sources.rejected import counts, mark_equal, summary


def rows(label: list[str], split: list[str] | None = None) -> pd.DataFrame:
    names = [f"{row}.png" for row in range(len(label))]
    return pd.DataFrame({"source": names, "label": label, "split": split or "", "reason": ""}, dtype=object)


def marked(table: pd.DataFrame, pixels: list[int]) -> list[str]:
    digests = np.array([[pixel, 0] for pixel in pixels], np.uint64)
    mark_equal(table, digests, np.arange(len(pixels)))
    return table["reason"].tolist()


def test_all_but_one_of_equal_images_are_marked() -> None:
    assert marked(rows(list("aabab")), [1, 2, 3, 1, 3]) == [
        "",
        "",
        "",
        "duplicate: equal to 0.png",
        "duplicate: equal to 2.png",
    ]


def test_no_image_of_two_classes_stays() -> None:
    assert marked(rows(list("aba")), [1, 1, 1]) == [
        "contradiction: equal to 1.png, which is b",
        "contradiction: equal to 0.png, which is a",
        "contradiction: equal to 1.png, which is b",
    ]


def test_leaks_name_the_pair() -> None:
    assert marked(rows(list("aaaa"), ["train", "valid", "test", "test"]), [1, 1, 1, 1]) == [
        "leak: equal to 2.png, in test",
        "leak: equal to 2.png, in test",
        "",
        "duplicate: equal to 2.png",
    ]


def test_an_unusable_image_is_equal_to_none() -> None:
    table = rows(list("ab"))
    table.loc[0, "reason"] = "missing file"
    assert marked(table, [1, 1]) == ["missing file", ""]


def test_twenty_are_listed_and_all_are_counted() -> None:
    table = rows(["a"] * 50)
    assert summary(table, Path("set")) == []
    table.loc[5:27, "reason"] = "not an image: at all"
    table.loc[28:29, "reason"] = "missing file"
    assert counts(table) == {"missing file": 2, "not an image": 23}
    said = summary(table, Path("set"))
    assert said[0] == "25 of 50 images of set cannot be used (missing file 2, not an image 23):"
    assert said[1] == "  5.png: not an image: at all"
    assert said[-1] == "  and 5 more"
    assert len(said) == 22


def test_many_equal_images_take_no_time() -> None:
    start = time.perf_counter()
    assert marked(rows(["a", "b"] * 50_000), [0] * 100_000).count("") == 0
    assert marked(rows(["a"] * 100_000), [*range(50_000)] * 2).count("") == 50_000
    assert time.perf_counter() - start < 30

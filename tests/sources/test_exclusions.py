"""Images that a table leaves out: before anything is said of them, and with the bytes of a set that never had them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.base.errors import InputError
from stages.base.files import write_csv
from stages.base.params import PrepareParams
from stages.prepare import prepare
from stages.sources import exclusions
from tests.conftest import params_with, write_image


def given(folder: Path, **changes: Any) -> PrepareParams:
    values = {"source": "folder", "path": str(folder / "raw"), "exclude": str(folder / "out.csv")} | changes
    return params_with({f"prepare.{name}": value for name, value in values.items()}).prepare


def test_odd_names_are_found_as_our_own_tables_write_them(tmp_path: Path) -> None:
    names = ["a/Icon\r", "\u3000a/1.png", "\ta/1.png", " 'a/2.png", "'=a/3.png", "-1.png", "a, b/4.png"]
    for name in names:
        for seed in (1, 2):
            write_csv(tmp_path / "out.csv", pd.DataFrame({"source": [name.replace("\r", "\\r")], "seed": seed}))
            out = exclusions.excluded(tmp_path / "out.csv")
            assert exclusions.left(["other", name], out, tmp_path / "out.csv") == [True, False], name


def test_nothing_is_left(raw: Path) -> None:
    names = [f"=a/{seed:02}.png" for seed in range(0, 24, 2)]
    write_csv(raw / "out.csv", pd.DataFrame({"source": [*names, "b/99.png"]}))
    with pytest.raises(
        InputError, match=r"(?s)images of 1 class.*two are needed\nprepare\.exclude leaves 13 images out"
    ):
        prepare(given(raw), raw / "prepared")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Classes "=a" and " b" of twelve images; one is cut, two are equal, and one is alone in a class like another."""
    for seed in range(24):
        write_image(tmp_path / f"raw/{('=a', ' b')[seed % 2]}/{seed:02}.png", seed)
    cut = tmp_path / "raw/=a/00.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "raw/ b/copy.png").write_bytes((tmp_path / "raw/ b/03.png").read_bytes())
    write_image(tmp_path / "raw/b/99.png", 99)
    return tmp_path


OUT = ["=a/00.png", "=a/02.png", " b/copy.png", "b/99.png"]


def test_what_is_left_out_is_as_if_it_had_never_been_there(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(raw / "out.csv", pd.DataFrame({"kind": "label", "source": OUT}))
    assert ",'=a/00.png" in (raw / "out.csv").read_text()
    prepare(given(raw), raw / "one")
    assert "left out 4 images that " in capsys.readouterr().out
    for name in OUT:
        (raw / "raw" / name).unlink()
    (raw / "out.csv").write_text("source\n")
    prepare(given(raw), raw / "two")
    assert "left out" not in capsys.readouterr().out
    for file in ("images.npy", "manifest.csv"):
        assert (raw / "one" / file).read_bytes() == (raw / "two" / file).read_bytes()
    info = json.loads((raw / "one/dataset.json").read_text())
    assert info.pop("excluded") == 4
    assert info == json.loads((raw / "two/dataset.json").read_text())


def test_the_rejected_of_one_time_are_the_exclusions_of_the_next(raw: Path) -> None:
    (raw / "raw/b/99.png").unlink()
    prepare(given(raw, on_bad="skip", exclude="data/excluded.csv"), raw / "one")
    (raw / "one/rejected.csv").rename(raw / "out.csv")
    prepare(given(raw), raw / "two")
    one, two = (pd.read_csv(raw / name / "manifest.csv") for name in ("one", "two"))
    columns = ["split", "label", "source"]
    pd.testing.assert_frame_equal(one[columns], two[columns])
    assert not (raw / "two/rejected.csv").exists()


def test_a_list_that_prepare_itself_replaces_is_refused_and_kept(raw: Path) -> None:
    with pytest.raises(InputError, match=r"listed in .*rejected\.csv"):
        prepare(given(raw, exclude="data/excluded.csv", classes=["=a", " b", "b"]), raw / "prepared")
    listing = (raw / "rejected.csv").read_bytes()
    for name in ("rejected.csv", "prepared/rejected.csv"):
        with pytest.raises(InputError, match=rf"prepare\.exclude: '.*{name}' is written by prepare itself; copy it"):
            prepare(given(raw, exclude=str(raw / name)), raw / "prepared")
    assert (raw / "rejected.csv").read_bytes() == listing


def test_too_few_are_left(raw: Path) -> None:
    names = [f" b/{seed:02}.png" for seed in range(1, 24, 2)][:-2]
    write_csv(raw / "out.csv", pd.DataFrame({"source": [*OUT, *names]}))
    with pytest.raises(InputError, match=r"(?s)needs an image in each split.*prepare\.exclude leaves 14 images out"):
        prepare(given(raw), raw / "prepared")


def test_a_name_of_several_rows_is_refused(raw: Path) -> None:
    rows = [f"=a/{seed:02}.png,a" for seed in range(2, 24, 2)] + [f" b/{seed:02}.png,b" for seed in range(1, 24, 2)]
    (raw / "raw/labels.csv").write_text("\n".join(["image,label", *rows, rows[-1]]) + "\n")
    (raw / "out.csv").write_text("source\n b/23.png\n")
    with pytest.raises(InputError, match=r"names what several rows are called, .*: b/23\.png"):
        prepare(given(raw, source="csv"), raw / "prepared")


def test_images_of_a_published_set(tmp_path: Path) -> None:
    whole = params_with({}).prepare
    prepare(whole, tmp_path / "one")
    one = pd.read_csv(tmp_path / "one/manifest.csv")
    (tmp_path / "out.csv").write_text(f"why,source\nsmudged,{one['source'][3]}\nsmudged,{one['source'][9]}\n")
    prepare(params_with({"prepare.exclude": str(tmp_path / "out.csv")}).prepare, tmp_path / "two")
    two = pd.read_csv(tmp_path / "two/manifest.csv")
    assert len(two) == len(one) - 2
    kept = [row for row in range(len(one)) if row not in (3, 9)]
    assert list(two["source"]) == list(one["source"][kept])
    images = [np.load(tmp_path / name / "images.npy") for name in ("one", "two")]
    assert np.array_equal(images[0][one["index"][kept]], images[1][two["index"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source\n=a/02.png\n=a/2.png\nb/x.png\n", r"out\.csv names 2 images that are not there: =a/2\.png, b/x\.png"),
        (b"source\nb/x.png\n", r"prepare\.exclude: .*out\.csv names 1 image that is not there: b/x\.png"),
        (b"file\n=a/02.png\n", r"prepare\.exclude: .*out\.csv, should have one column 'source'; its columns: 'file'"),
        (b"", r"out\.csv, should have one column 'source'; its columns: none"),
        (b'source\n"=a/02.png\n', r"out\.csv, line 2.*quotation mark"),
        (b"source\n\xff\n", r"out\.csv is not UTF-8"),
        (b"source\n=a/02.png,x\n", r"out\.csv, line 2: 2 cells, and 1 in the header"),
        (None, r"out\.csv: No such file or directory"),
    ],
)
def test_a_table_that_is_none(raw: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (raw / "out.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare(given(raw), raw / "prepared")
    assert not (raw / "prepared").exists()

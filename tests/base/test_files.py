from pathlib import Path

import pandas as pd
import pytest

from stages.base.files import read_csv, replacing, rounded, sha256, write_csv, write_json


def test_a_file_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "half").touch()
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]


def test_text_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": rounded(1 / 3), "a": ["é", 1]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "a": [\n    "é",\n    1\n  ],\n  "b": 0.333333\n}\n'.encode()
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1, 2], "y": [1 / 3, 1e-7]}))
    assert (tmp_path / "a.csv").read_bytes() == b"x,y\n1,0.333333\n2,1e-07\n"


def test_no_text_of_a_table_is_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    texts = ["=1+1", "+a", "-b", "@c", "\td", "'e", "-0.5", "+7", "f=g", "NA", "é"]
    table = pd.DataFrame({"=name": texts, "value": [-0.5] * len(texts)})
    table = pd.concat([table, table[["value"]]], axis="columns")  # two columns of one name, as classes may make them
    write_csv(tmp_path / "a.csv", table)
    cells = [line.split(",")[0] for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert cells == ["'=name", "'=1+1", "'+a", "'-b", "'@c", "'\td", "''e", "-0.5", "+7", "f=g", "NA", "é"]
    again = read_csv(tmp_path / "a.csv", dtype={"'=name": str}, keep_default_na=False)
    assert again["=name"].tolist() == texts
    assert again["value"].tolist() == [-0.5] * len(texts)


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})


def test_sha256_goes_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    # The digest of "abc", an example in FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a", tmp_path / "b") == expected

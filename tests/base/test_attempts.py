"""Attempts at a training: the same one until its file is removed."""

import json
import shutil
from pathlib import Path

import pytest

from stages.base.attempts import Attempt, next_attempt


def test_attempts_are_counted_until_the_file_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "a.attempts"
    first, second, third = (next_attempt(file) for _ in range(3))
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert first.training == second.training == third.training
    file.unlink()
    another = next_attempt(file)
    assert another.number == 1
    assert another.training != first.training
    assert list(tmp_path.iterdir()) == [file]


def test_a_copy_of_the_project_has_attempts_of_its_own(tmp_path: Path) -> None:
    first = next_attempt(tmp_path / "a.attempts")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "a.attempts", tmp_path / "copy")
    other = next_attempt(tmp_path / "copy/a.attempts")
    assert other.number == 1
    assert other.training != first.training


def test_a_project_that_is_moved_keeps_its_attempts(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    first = next_attempt(tmp_path / "before/a.attempts")
    (tmp_path / "before").rename(tmp_path / "after")
    assert next_attempt(tmp_path / "after/a.attempts") == Attempt(first.training, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_what_a_power_cut_has_left_is_a_first_one(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.attempts"
    file.write_text(text)
    assert next_attempt(file).number == 1
    assert next_attempt(file).number == 2


@pytest.mark.parametrize(("field", "value"), [("training", None), ("number", None), ("number", "x")])
def test_a_file_that_lacks_something_is_a_first_one(tmp_path: Path, field: str, value: str | None) -> None:
    file = tmp_path / "a.attempts"
    first = next_attempt(file)
    content = json.loads(file.read_text()) | {field: value}
    file.write_text(json.dumps({name: each for name, each in content.items() if each is not None}))
    other = next_attempt(file)
    assert other.number == 1
    assert other.training != first.training

"""What is kept of commits."""

from pathlib import Path

import pytest

from tools import facts
from tools.facts import Facts, Held

HELD = Held({"train.seed": "1"}, {"weights.sha256": "ab"}, ["params.yaml"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".dvc/tmp/commits"


def test_what_is_kept_comes_back_and_adds_up() -> None:
    assert facts.of("a") == Facts()
    facts.add("a", identity="of two")
    facts.add("a", held=HELD)
    assert facts.of("a") == Facts(identity="of two", held=HELD)
    assert facts.of("b") == Facts()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"held": 1}', '{"identity": "x", "held": null, "more": 1}'])
def test_a_damaged_file_is_nothing_known(folder: Path, content: str) -> None:
    facts.add("a", identity="of two")
    [file] = folder.glob("*/a.json")
    file.write_text(content)
    assert facts.of("a") == Facts()
    facts.add("a", unusable="no evaluation")
    assert facts.of("a") == Facts(unusable="no evaluation")


def test_other_code_starts_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts.add("a", held=HELD)
    monkeypatch.setattr(facts, "_code", lambda: "other")
    assert facts.of("a") == Facts()
    facts.add("b", held=HELD)
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_where_there_is_no_place_nothing_is_kept(folder: Path) -> None:
    folder.parents[1].write_text("no folder")
    facts.add("a", held=HELD)
    assert facts.of("a") == Facts()

"""Names in letters that matplotlib's own font lacks, with real font files that are made here."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from stages.report import canvas, charts, fonts
from tests.report.conftest import drawn


def write_font(path: Path, family: str, letters: str, style: str = "Regular") -> None:
    """Write a font whose letters are black squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in [(0, 800), (800, 800), (800, 0)]:
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": style, "fullName": f"{family} {style}"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The one folder with fonts on this machine."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(font_manager, "findSystemFonts", partial(font_manager.findSystemFonts, [str(folder)]))
    yield folder
    fonts.use_for([])


def families() -> list[str]:
    return list(matplotlib.rcParams["font.family"])


def test_names_that_dejavu_sans_can_write_want_no_other_font(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_font(folder / "one.ttf", "One", "aé猫")
    fonts.use_for(["naïve Ωμέγα Жук ☃", "a\nb\x1b"])
    assert families() == ["DejaVu Sans"]
    assert capsys.readouterr().err == ""


def test_those_installed_fonts_are_used_that_have_the_most_of_what_lacks(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_font(folder / "all-slanted.ttf", "All", "猫犬鳥", "Italic")
    write_font(folder / "bird.ttf", "Bird", "鳥")
    write_font(folder / "cat.ttf", "Cat", "猫")
    write_font(folder / "cat-and-dog.ttf", "Cat and dog", "猫犬")
    write_font(folder / "boxes.ttf", "Last Resort", "猫犬鳥")
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "cut.ttf").write_bytes((folder / "boxes.ttf").read_bytes()[:300])
    fonts.use_for(["猫", "犬と猫"])
    assert families() == ["DejaVu Sans", "Cat and dog"]
    assert capfd.readouterr().err.count("と.") == 1
    fonts.use_for(["猫", "犬 and 鳥"])
    assert families() == ["DejaVu Sans", "Cat and dog", "Bird"]
    fonts.use_for(["rose"])
    assert families() == ["DejaVu Sans"]
    assert capfd.readouterr().err == ""


def test_a_name_is_drawn_in_the_font_that_has_its_letters(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_font(folder / "cat.ttf", "Squares", "猫")
    table = pd.DataFrame({"class": ["猫猫猫猫"], "correct": 0, "total": 1, "recall": 0.0})
    fonts.use_for(table["class"])
    canvas.save(charts.classes(table), folder / "a.png")
    black = drawn(folder / "a.png").max(axis=2) < 0.1
    # Four squares of 0.8 of 10 points, at 100 dots an inch.
    squares = [int(row.sum()) for row in black[:, : black.shape[1] // 4] if 40 <= row.sum() <= 48]
    assert len(squares) == pytest.approx(11, abs=1)
    assert capfd.readouterr().err == ""


def test_letters_that_no_font_has_are_said_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = torch.eye(2, dtype=torch.int64)
    fonts.use_for(["猫犬", "猫"])
    for _ in range(2):
        canvas.save(charts.confusion(table, ["猫犬", "猫"]), folder / "a.png")
    warning = capfd.readouterr().err
    assert warning.startswith(
        "warning: no installed font has these letters of the names in the pictures: 犬, 猫. Boxes"
    )
    assert warning.count("\n") == 1

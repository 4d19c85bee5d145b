"""Fonts for names that DejaVu Sans, which matplotlib brings along, cannot write.

It alone is used wherever it has all that is written, so that what else is installed makes no difference.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from stages.base.errors import listed
from stages.base.text import warn

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
NORMAL = 400  # of the weights of letters, 100 to 900


def use_for(texts: Iterable[str]) -> None:
    """Let what is drawn from now on be written in fonts that have the letters of `texts`, and warn of those in none."""
    missing = _lacking(DEJAVU, {letter for text in texts for letter in text if letter.isprintable()})
    families, installed = ["DejaVu Sans"], _installed() if missing else {}
    while missing:
        lacked = {name: _lacking(Path(font.fname), missing) for name, font in installed.items()}
        best = min(lacked, key=lambda name: (len(lacked[name]), name), default="")
        if not best or lacked[best] == missing:
            break
        # matplotlib's own list may be older than the font, and it remarks on one that has no normal weight.
        font_manager.fontManager.ttflist.append(replace(installed[best], weight=NORMAL))
        families, missing = [*families, best], lacked[best]
    matplotlib.rcParams["font.family"] = families
    if missing:
        warn(
            f"warning: no installed font has these letters of the names in the pictures: {listed(sorted(missing))}."
            " Boxes stand for them; fonts-noto-cjk, for one, is Debian's package for Chinese, Japanese and Korean"
        )


def _lacking(font: Path, letters: set[str]) -> set[str]:
    face = FT2Font(font)
    return {letter for letter in letters if not face.get_char_index(ord(letter))}


def _installed() -> dict[str, font_manager.FontEntry]:
    """Return the upright fonts of any size on this machine, of each family the one nearest to normal weight."""
    found: dict[str, font_manager.FontEntry] = {}
    for path in sorted(font_manager.findSystemFonts()):
        try:
            font = font_manager.ttfFontProperty(FT2Font(path))
        except Exception:  # files that are no fonts, or whose letters are pictures of one size, fail in many ways
            continue
        # There are fonts of boxes alone, for all letters.
        usable = font.style == "normal" and "lastresort" not in font.name.lower().replace(" ", "")
        if usable and (font.name not in found or _off(font) < _off(found[font.name])):
            found[font.name] = font
    return found


def _off(font: font_manager.FontEntry) -> int:
    return abs(int(font.weight) - NORMAL)

"""Pictures read back as numbers."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from stages.report import canvas


def drawn(path: Path) -> np.ndarray:
    """The picture as float (h, w, 3); all should be legible where MLflow shows them: 300 to 1,000 pixels wide."""
    image = matplotlib.image.imread(path)[:, :, :3]
    assert 300 <= image.shape[1] <= 1000
    return image


def near(image: np.ndarray, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of about this colour, 0 to 255 a channel."""
    rows, columns = (np.abs(image * 255 - colour).max(axis=2) < 2).nonzero()
    return rows, columns


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is written in the pictures that the test draws."""
    texts: list[str] = []

    def save(figure: Figure, path: Path) -> None:
        original(figure, path)
        texts.extend(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text())

    original = canvas.save
    monkeypatch.setattr(canvas, "save", save)
    return texts

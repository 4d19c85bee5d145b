"""The page of mistakes in Debian's chromium: what it shows, in which order, and that names are names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from stages.report import mistakes_page
from stages.report.pictures import Result
from stages.training.metrics import Answers

CLASSES = ["cat", "</script><b>dog", "a & b"]
LABELS = torch.tensor([0, 0, 1, 2, 2, 0])
PREDICTED = torch.tensor([1, 1, 0, 2, 1, 0])
CONFIDENCE = [0.6, 0.9, 0.7, 0.99, 0.5, 0.8]
FILES = ["z/1.png", "<img src=x onerror=alert(1)>.png", "b/3.png", "b/4.png", "a/5.png", "6.png"]


def result(images: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, files: list[str]) -> Result:
    probabilities = torch.full((len(labels), 3), 0.01)
    for row, (label, confidence) in enumerate(zip(predicted, CONFIDENCE * len(labels), strict=False)):
        probabilities[row, label] = confidence
    answers = Answers(labels, predicted, probabilities, True, 10)
    return Result(
        classes=CLASSES,
        labels=labels,
        predicted=predicted,
        probabilities=probabilities,
        is_probable=True,
        confusion=answers.confusion,
        per_class=pd.DataFrame(),
        curve=answers.curve,
        calibration=answers.calibration,
        files=files,
        images=images.__getitem__,
        training_labels=labels,
        training_images=images.__getitem__,
    )


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None].expand(6, 8, 8) * 40
    mistakes_page.write(tmp_path / "mistakes.html", result(images, LABELS, PREDICTED, FILES))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto((tmp_path / "mistakes.html").as_uri())
        yield page
        browser.close()
    assert wrong == []


@pytest.mark.slow
@pytest.mark.slow
def test_mistakes_by_what_was_confused_and_by_confidence(page: Page) -> None:
    expect(page.locator("#summary")).to_have_text("4 mistakes in 6 test images")
    expect(page.locator("h2")).to_have_text(
        ["cat called </script><b>dog: 2", "</script><b>dog called cat: 1", "a & b called </script><b>dog: 1"]
    )
    cards = page.locator("figure")
    expect(cards).to_have_count(4)
    expect(cards.first).to_contain_text("</script><b>dog 90.0 %")
    expect(cards.first).to_contain_text(FILES[1])
    assert cards.first.evaluate("card => card.offsetHeight") < 220, "the thumbnail, and lines of text under it"
    # The surest stands first in the image that holds the thumbnails.
    place = cards.first.locator("div").first.evaluate("image => image.style.backgroundPosition")
    assert place.replace("-0px", "0px") == "0px 0px"

    names = page.locator("figcaption div:last-child")
    page.locator("#by").select_option("file")
    expect(names).to_have_text([FILES[1], "a/5.png", "b/3.png", "z/1.png"])
    page.locator("#by").select_option("least")
    expect(names).to_have_text(["a/5.png", "z/1.png", "b/3.png", FILES[1]])
    page.locator("#which").select_option("0 1")
    expect(names).to_have_text(["z/1.png", FILES[1]])


def test_the_thumbnails_are_the_images(tmp_path: Path) -> None:
    colours = torch.randint(256, (30, 3, 100, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "a.png").write_bytes(mistakes_page.sprite(colours.__getitem__, torch.arange(30)))
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.size) == ("RGB", (25 * 64, 2 * 64))
    gray = colours[:, 0, :8, :8]
    (tmp_path / "b.png").write_bytes(mistakes_page.sprite(gray.__getitem__, torch.arange(30)))
    with Image.open(tmp_path / "b.png") as image:
        assert (image.mode, image.size) == ("L", (25 * 8, 2 * 8))
        assert np.array_equal(np.asarray(image.crop((3 * 8, 8, 4 * 8, 16))), gray[28].numpy())


def test_many_mistakes_and_none(tmp_path: Path) -> None:
    n = mistakes_page.MOST + 5
    labels, images = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 4, 4, dtype=torch.uint8)
    given = result(images, labels, labels + 1, [f"{i}.png" for i in range(n)])
    mistakes_page.write(tmp_path / "many.html", given)
    assert f"the 1,000 surest of {n:,} mistakes in {n:,} test images" in (tmp_path / "many.html").read_text()
    mistakes_page.write(tmp_path / "none.html", result(images, labels, labels, [""] * n))
    assert f'"summary": "0 mistakes in {n:,} test images"' in (tmp_path / "none.html").read_text()

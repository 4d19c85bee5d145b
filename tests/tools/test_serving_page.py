"""The page for pictures in Debian's chromium, without a network: what is chosen or dropped gets its answer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.conftest import Project, free_port, served

DROP = """([names, contents]) => {
  const data = new DataTransfer()
  names.forEach((name, place) => data.items.add(new File([new Uint8Array(contents[place])], name)))
  for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("drop").dispatchEvent(new DragEvent(kind, {bubbles: true, dataTransfer: data}))
}"""


@pytest.fixture(scope="module")
def page(compared: Project) -> Iterator[Page]:
    port = free_port()
    with (
        served(compared, "python", "-m", "tools.serve", "seed-1", "--port", str(port), port=port),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        browser.close()
    # Of the file that is refused the browser itself says so.
    assert wrong == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]


@pytest.mark.slow
def test_pictures_that_are_chosen_and_dropped(page: Page, compared: Project, digits: Path, tmp_path: Path) -> None:
    expect(page.get_by_role("heading", name="seed-1 (0.9")).to_be_visible()
    expect(page.get_by_text("10 classes: zero, one, two")).to_be_visible()
    predictions, images = pd.read_csv(compared.root / "seed-1/plots/predictions.csv"), np.load(digits / "images.npy")
    expected, files = predictions["predicted"][:3].tolist(), [tmp_path / f"<b>{number}.png" for number in range(3)]
    for file, row in zip(files, predictions["index"], strict=False):
        Image.fromarray(images[row]).save(file)

    page.get_by_label("pictures").set_input_files(files[:2])
    answers = page.locator("article")
    expect(answers).to_have_count(2)
    for place in (0, 1):  # the latest first
        expect(answers.nth(1 - place).locator("strong")).to_have_text(expected[place])
        expect(answers.nth(1 - place)).to_contain_text(f"<b>{place}.png")
    share = predictions.iloc[0, 4:].max()
    expect(answers.nth(1).locator("tr").first).to_contain_text(f"{share:.3f}")
    assert answers.nth(1).locator("img").evaluate("image => image.naturalWidth") == 8

    contents = [list(files[2].read_bytes()), list(b"no image")]
    page.evaluate(DROP, [[files[2].name, "notes.txt"], contents])
    expect(answers).to_have_count(4)
    expect(answers.nth(1).locator("strong")).to_have_text(expected[2])
    expect(answers.nth(0)).to_contain_text("not an image: not PNG, JPEG")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)

"""The page of a comparison, taken apart: its table, its pictures, its links, and what of it users wrote."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from stages.prepare import prepare as prepare_data
from tests.conftest import ROOT, Project, params_with
from tools.comparison import compare
from tools.comparison_page import _png, as_html
from tools.runs import EvaluatedRun, Runs


class Taken(HTMLParser):
    """The parts of a page: rows of cells, the texts of figures, pictures, links, and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.figures: list[list[str]] = []
        self.pictures: list[bytes] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.texts: list[str] = []
        self._into: list[str] = []
        self._in_figure = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._into = self.rows[-1]
        elif tag == "figure":
            self.figures.append([])
            self._in_figure = True
        elif tag == "img":
            kind, _, content = str(given["src"]).partition(";base64,")
            assert kind.startswith("data:image/"), "no other file is needed"
            self.pictures.append(base64.b64decode(content))
        elif tag == "a":
            self.links.append(str(given["href"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._into = []
        elif tag == "figure":
            self._in_figure = False

    def handle_data(self, data: str) -> None:
        if not data.strip():
            return
        self.texts.append(data.strip())
        if self._into:
            self._into[-1] += data
        elif self._in_figure:
            self.figures[-1].append(data.strip())


@pytest.fixture
def prepared(store: Runs, digits: Path, tmp_path: Path) -> Path:
    """The workspace's prepared set, which is what the runs were tested on."""
    assert store
    return shutil.copytree(digits, tmp_path / "data/prepared")


def page(store: Runs, *runs: EvaluatedRun) -> str:
    return as_html(compare(runs), store)


def test_every_run_has_its_column_under_its_name(store: Runs) -> None:
    runs = [store.find(name) for name in ("seed-0", "seed-1", "closed")]
    taken = Taken(page(store, *runs))
    assert {len(row) for row in taken.rows} == {4}
    heads = [row[0] for row in taken.rows if row[1:] == ["seed-0", "seed-1", "closed"]]
    assert heads == ["run", "metrics", "parameters that differ", "settings used that differ"]
    rows = {row[0]: row[1:] for row in taken.rows}
    assert rows["test/accuracy"] == [f"{run.metrics['test/accuracy']:.6g}" for run in runs]
    assert rows["train.seed"] == ["0", "1", "0"]
    assert set(taken.links) == {*(run.link for run in runs), store.comparing(runs)}
    query = parse_qs(store.comparing(runs).partition("?")[2])
    assert json.loads(query["runs"][0]) == [run.id for run in runs]
    assert json.loads(query["experiments"][0]) == [store.experiment_id]


def test_curves_of_all_and_the_confusion_matrix_of_each(store: Runs, compared: Project) -> None:
    names = ["seed-0", "closed"]
    curves, *matrices = Taken(page(store, *map(store.find, names))).pictures
    assert matrices == [(compared.root / name / "plots/pictures/confusion.png").read_bytes() for name in names]
    drawing = ElementTree.fromstring(curves)
    texts = {"".join(element.itertext()) for element in drawing.iter() if element.tag.endswith("}text")}
    assert {*names, "loss", "accuracy", "epoch"} <= texts
    lines = [element.get("d", "") for element in drawing.iter() if element.get("clip-path")]
    assert sum(line.count("L") > 5 for line in lines) == 8, "two runs, training and validation, loss and accuracy"


def test_the_images_on_which_two_differ(store: Runs, prepared: Path) -> None:
    runs = [store.find(name) for name in ("seed-0", "closed")]
    taken = Taken(page(store, *runs))
    right = [run.right() for run in runs]
    alone = [right[0] & ~right[1], right[1] & ~right[0]]
    assert alone[0].sum() > 24, "so not all are shown"
    assert f"Right in seed-0 alone: 24 of {alone[0].sum()} images" in taken.texts
    assert f"Right in closed alone: {alone[1].sum()} images" in taken.texts
    assert alone[1].sum() > 1
    pictures, captions = taken.pictures[3:], taken.figures[2:]
    assert len(pictures) == len(captions) == 24 + alone[1].sum()
    array = np.load(prepared / "images.npy")
    tables: list[dict[str, dict[Any, Any]]]
    tables = [{row["source"]: row for row in run.predictions.to_dict("records")} for run in runs]
    confidences = []
    for content, (file, is_label, *answers) in zip(pictures, captions, strict=True):
        rows = [table[file] for table in tables]
        shares = [max(list(row.values())[4:]) for row in rows]
        assert np.array_equal(np.array(Image.open(io.BytesIO(content))), array[rows[0]["index"]])
        assert is_label == f"is {rows[0]['label']}"
        assert answers == [
            f"{run.name}: {row['predicted']} {share:.0%}" for run, row, share in zip(runs, rows, shares, strict=True)
        ]
        confidences.append(shares[1])
    assert confidences[:24] == sorted(confidences[:24], reverse=True)
    every = np.sort(runs[1].shares()[alone[0]])[::-1]
    assert confidences[:24] == pytest.approx(every[:24]), "the most confident mistakes of the other"


@pytest.mark.parametrize("change", ["other images", "none", "broken shards"])
def test_images_that_the_workspace_lacks_are_named(store: Runs, prepared: Path, change: str) -> None:
    if change == "none":
        shutil.rmtree(prepared)
        reason = r"data/prepared is not a prepared set: .*dvc repro prepare"
    elif change == "broken shards":
        digest = json.loads((prepared / "dataset.json").read_text())["sha256"]["test"]
        shutil.rmtree(prepared)
        given = {"prepare.shard_mb": 0.05, "prepare.exclude": str(ROOT / "data/excluded.csv")}
        prepare_data(params_with(given).prepare, prepared)
        info = json.loads((prepared / "dataset.json").read_text())
        info["sha256"]["test"] = digest
        (prepared / "dataset.json").write_text(json.dumps(info))
        for shard in prepared.glob("images-*.npy"):
            shard.write_bytes(bytes(shard.stat().st_size))
        reason = r"data/prepared/images-0000\d.npy is no shard of the prepared set"
    else:
        info = json.loads((prepared / "dataset.json").read_text())
        info["sha256"]["test"] = "0" * 64
        (prepared / "dataset.json").write_text(json.dumps(info))
        reason = "data/prepared holds other test images than those of seed-0"
    taken = Taken(page(store, store.find("seed-0"), store.find("seed-1")))
    assert re.search(f"They are not shown, only named: {reason}", " ".join(taken.texts))
    assert len(taken.pictures) == 3
    named = [caption[0] for caption in taken.figures[2:]]
    assert named
    assert all(re.fullmatch(r"digits/\d+", name) for name in named)


def test_runs_that_were_tested_on_different_images(store: Runs) -> None:
    taken = Taken(page(store, store.find("seed-0"), store.find("others")))
    assert any("cannot be compared, they were tested on different images" in text for text in taken.texts)
    assert not any(text.startswith("Images on which") for text in taken.texts)


def test_shares_are_left_out_where_they_are_no_probabilities(store: Runs, prepared: Path) -> None:
    assert prepared
    one, two = store.find("seed-0"), store.find("seed-1")
    two = replace(two, params=two.params | {"train.loss.name": "MSELoss"})
    taken = Taken(page(store, one, two))
    for caption in taken.figures[2:]:
        assert caption[2].startswith("seed-0: ")
        assert caption[2].endswith("%")
        assert re.fullmatch(r"seed-1: \w+", caption[3])
    assert any(text.endswith("The losses are of different functions.") for text in taken.texts)


def test_large_coloured_images_become_small() -> None:
    pixels = np.zeros((3, 300, 150), np.uint8)
    pixels[0, :150], pixels[2, 150:] = 200, 100
    image = np.array(Image.open(io.BytesIO(base64.b64decode(_png(pixels).partition(",")[2]))))
    assert image.shape == (128, 64, 3)
    assert image[10, 10].tolist() == [200, 0, 0]
    assert image[110, 10].tolist() == [0, 0, 100]


@pytest.mark.slow
def test_a_browser_without_a_network_shows_all_of_it(store: Runs, prepared: Path, tmp_path: Path) -> None:
    assert prepared
    runs = [store.find(name) for name in ("seed-0", "seed-1", "closed")]
    (tmp_path / "page.html").write_text(page(store, *runs), encoding="utf-8")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "this test drives a browser: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1440, "height": 900})
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((tmp_path / "page.html").as_uri())
        loaded = shown.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        lefts = "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.getBoundingClientRect().left))"
        rows = shown.evaluate(lefts)
        width = shown.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(loaded) > 20
    assert all(loaded)
    assert len(rows) > 10
    assert all(row == rows[0] for row in rows)
    assert width == 1440, "nothing is beside the window"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


EVIL = "<script>alert(1)</script>\"'&\x1b[2J\u202e</table>"


def test_what_users_wrote_is_shown_as_it_is(store: Runs, prepared: Path) -> None:
    assert prepared
    one, two = store.find("seed-0"), store.find("seed-1")
    plain = Taken(page(store, one, two))
    table = one.predictions.assign(source=EVIL, label=EVIL)
    one = replace(one, name=EVIL, predictions=table, params=one.params | {EVIL: EVIL}, remark=EVIL)
    two = replace(two, name="$x_1$", tags=two.tags | {f"env.{EVIL}": EVIL}, patch=f"diff --git a/x b/{EVIL}")
    evil = Taken(page(store, one, two))
    assert evil.names == plain.names | {"p"}
    assert {len(row) for row in evil.rows} == {3}
    shown = EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert evil.rows[0] == ["run", shown, "$x_1$"]
    assert evil.figures[2][:2] == [shown, f"is {shown}"]
    assert shown in evil.texts, "the remark"
    curves = ElementTree.fromstring(evil.pictures[0])
    texts = {"".join(element.itertext()) for element in curves.iter() if element.tag.endswith("}text")}
    assert {shown, "$x_1$"} <= texts

"""A run's report as one page: what is on it, that it needs nothing else, and what stands in it is harmless."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from stages.base.errors import InputError
from tests.conftest import Project
from tools import report
from tools.runs import EvaluatedRun, Runs


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> Path:
    monkeypatch.setattr("sys.argv", ["report", run, "--html", str(folder / "out/report.html")])
    report.main()
    return folder / "out/report.html"


@pytest.mark.slow
def test_the_page_of_a_run(
    store: Runs, compared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, monkeypatch, "seed-1")
    run = store.find("seed-1")
    assert f"report.html: seed-1 ({run.id[:8]}), " in capsys.readouterr().out
    drawn = {path.stem for path in (compared.root / "seed-1/plots/pictures").iterdir()}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert page.title() == "seed-1"
        assert page.locator("h1").inner_text() == f"Net: test accuracy {run.metrics['test/accuracy']:.4f}"
        headings = page.locator("h2").all_inner_texts()
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        metrics = page.locator("table").nth(1).inner_text()
        facts = page.locator("table").last.inner_text()
        links = page.evaluate("[...document.links].map(link => link.href)")
        browser.close()
    assert headings == [
        *("Data", "Training", "Test metrics", "What is confused", "Classes", "Mistakes", "Limits"),
        *("How to make it again", "The run"),
    ]
    assert len(sizes) == 6
    assert min(sizes) >= 300, "all pictures are there"
    assert {"examples", "learning_curves", "confusion", "curves", "reliability", "mistakes"} <= drawn
    for name in ("accuracy", "macro_f1", "kappa"):
        assert re.search(rf"{name}\s+{run.metrics[f'test/{name}']:.6g}\s", metrics)
    assert f"torch\t{run.tags['env.torch']}" in facts
    assert links == [run.link]
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_what_a_store_holds_is_not_obeyed(store: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "report.md"
    evil.write_text(
        "# <img src=x onerror=alert(1)>\n\n<script>alert(1)</script>\n\n[a](javascript:alert(1))\n\n"
        "![x](http://127.0.0.1/x.png) ![y](../../secret.png) ![w](pictures/../../secret.png) ![z](pictures/mine.png)\n"
    )
    (tmp_path / "mine.png").write_bytes(b"a picture")
    asked: list[str] = []

    def artifact(_self: Runs, _run: EvaluatedRun, path: str, _folder: Path) -> Path:
        asked.append(path)
        return evil if path.endswith(".md") else tmp_path / "mine.png"

    run = store.find("seed-0")
    monkeypatch.setattr(Runs, "artifact", artifact)
    page = report.as_html(run, store)
    assert asked == ["plots/report.md", "plots/pictures/mine.png"]
    assert re.findall(r"<(script|img)\b", page) == ["img"]
    assert 'href="javascript' not in page
    assert page.count(": not there</p>") == 3


def test_runs_without_a_report(store: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"no evaluated run is called 'seed-9' in {store.name}"):
        written(tmp_path, monkeypatch, "seed-9")
    monkeypatch.setattr(report, "REPORT", "plots/none.md")
    with pytest.raises(InputError, match=r"the run seed-0 \(\w{8}\) has no plots/none\.md, as earlier code wrote none"):
        written(tmp_path, monkeypatch, "seed-0")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

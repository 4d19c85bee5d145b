"""MLflow's pages as a visitor sees them: a real store, the real server, and Debian's chromium without a network."""

import os
import re
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from stages.base.errors import InputError
from stages.tracking.colours import TAG
from tests.conftest import ROOT, Project, free_port
from tools.pages import as_script
from tools.runs import Runs
from tools.serve import check_port
from tools.ui import CURVES, KNOWN, METRICS, packed, prepare, server_version, state_of, varying

NAMES = [f"lr-{optimizer}-{rate}" for optimizer in ("SGD", "Adam") for rate in (0.003, 0.01, 0.03)]
SIZE: ViewportSize = {"width": 1440, "height": 900}
VARYING = ["train.optimizer.name", "train.optimizer.lr"]


@pytest.fixture(scope="module")
def project(make_project: Callable[[], Project]) -> Project:
    """A copy of the project whose store has a sweep of six runs, beside another experiment."""
    project = make_project()
    store = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    store.create_experiment("another")  # so that ours is not number 1
    values = ["train.optimizer.name=SGD,Adam", "train.optimizer.lr=0.003,0.01,0.03", "train.epochs=5"]
    arguments = [f"--set-param={value}" for value in values]
    project("python", "-m", "tools.sweep", "--name", "lr", "--jobs", "2", *arguments)
    return project


@contextmanager
def served(project: Project, *command: str, **environment: str) -> Iterator[tuple[str, Any]]:
    """Yield the link to the runs that `command` prints, and its process, which is ended if it still runs."""
    process = project.start(*command, **{"DISPLAY": "", "WAYLAND_DISPLAY": "", **environment})
    output = ""
    try:
        assert process.stdout
        while not (printed := re.search(r"training runs: +(\S+)\n", output)):
            line = process.stdout.readline()
            assert line, f"the server did not start:\n{output}"
            output += line
        yield printed[1], process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def link(project: Project) -> Iterator[str]:
    with served(project, "python", "-m", "tools.ui", "--port", str(free_port())) as (link, _):
        yield link


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests drive a browser: apt-get install chromium"
    with sync_playwright() as playwright:
        # Only this machine is reached, so a page that wants the network is seen as it is without one.
        offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", offline])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here."""
    context = browser.new_context(viewport=SIZE)
    yield context.new_page()
    context.close()


@pytest.fixture
def screenshot(page: Page, tmp_path: Path) -> Callable[..., None]:
    """Take a picture of the page; of one for the README, with REPRONET_SCREENSHOTS=1, also in docs/."""

    def take(name: str, readme: bool = False) -> None:
        page.mouse.move(720, 0)  # away from what would show a tooltip
        page.wait_for_timeout(1000)  # charts and menus move into place
        for folder in [tmp_path] + ([ROOT / "docs"] if readme and os.environ.get("REPRONET_SCREENSHOTS") else []):
            page.screenshot(path=folder / f"{name}.png")

    return take


def visit(page: Page, link: str) -> None:
    """Open the pages, and see that nothing lies before or beside the runs."""
    page.goto(link)
    expect(page.get_by_text("6 matching runs")).to_be_visible()
    expect(page.get_by_text("Exit shared view")).to_have_count(0)
    expect(page.get_by_role("button", name="MLflow Assistant")).to_be_visible()  # as it is not beside its open panel


READ_CELLS = """() => [...document.querySelectorAll(".ag-row .ag-cell")].map(cell => [
    Number(cell.parentElement.getAttribute("row-index")),
    cell.getBoundingClientRect().left,
    cell.getAttribute("col-id"),
    cell.innerText.split("\\n").pop(),
]).sort((one, other) => one[0] - other[0] || one[1] - other[1])"""


def cells(page: Page) -> list[dict[str, str]]:
    """The table as it is shown once all of it has come: for each row, text by column, from left to right."""
    expect(page.locator(f".ag-row [col-id='metrics.`{METRICS[-1]}`']")).to_have_count(6)
    before, shown = None, page.evaluate(READ_CELLS)
    while shown != before:
        page.wait_for_timeout(500)
        before, shown = shown, page.evaluate(READ_CELLS)
    rows: list[dict[str, str]] = [{} for _ in NAMES]
    for row, _, column, text in shown:
        rows[row][column] = text
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_metrics_come_first_and_the_best_by_validation_whatever_the_address(
    page: Page, project: Project, link: str, screenshot: Any, plain: bool
) -> None:
    assert "/#/experiments/2/runs?" in link
    visit(page, link.split("/#")[0] if plain else link)
    rows = cells(page)
    screenshot("runs", readme=not plain)
    columns = [*(f"metrics.`{name}`" for name in METRICS), *(f"params.`{name}`" for name in VARYING)]
    assert [column for column in rows[0] if column.startswith(("params.", "metrics."))] == columns
    for column in columns:
        header = page.locator(f".ag-header-cell[col-id='{column}']").bounding_box()
        assert header is not None
        assert header["x"] + header["width"] <= SIZE["width"]
    stored = {run.info.run_name: run for run in project.runs()}
    accuracies = [float(row["metrics.`best/valid_accuracy`"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1] + 0.05
    assert sorted(row["attributes.`Run Name`"] for row in rows) == sorted(NAMES)
    for row in rows:
        run = stored[row["attributes.`Run Name`"]]
        assert [row[f"params.`{name}`"] for name in VARYING] == row["attributes.`Run Name`"].split("-")[1:]
        for name in METRICS:
            assert float(row[f"metrics.`{name}`"]) == pytest.approx(run.data.metrics[name], rel=1e-5)
    assert len({run.data.tags[TAG] for run in stored.values()}) == 6


@pytest.mark.slow
def test_what_a_visitor_changes_stays(page: Page, link: str) -> None:
    visit(page, link)
    column = page.locator(".ag-header-cell[col-id='metrics.`test/loss`']")
    column.click()
    expect(page.get_by_text("Sort: test/loss")).to_be_visible()
    page.wait_for_timeout(1000)
    page.goto("about:blank")
    page.goto(link)
    expect(page.get_by_text("Sort: test/loss")).to_be_visible()
    assert page.evaluate("localStorage.getItem('mlflow.settings.telemetry.enabled_v1')") == "false"


@pytest.mark.slow
def test_learning_curves(page: Page, link: str, screenshot: Any) -> None:
    visit(page, f"{link}&compareRunsMode=CHART")
    expect(page.get_by_test_id("experiment-view-compare-runs-section-header").first).to_contain_text("Learning curves")
    for number, curve in enumerate(CURVES):
        card = page.get_by_test_id("experiment-view-compare-runs-card").nth(number)
        for name in NAMES:
            expect(card).to_contain_text(f"{name} ({curve})")
        expect(card.locator(".scatterlayer .trace").first.locator(".point")).to_have_count(5)  # one for each epoch
    screenshot("curves", readme=True)


@pytest.mark.slow
def test_two_runs_compared(page: Page, link: str, screenshot: Any) -> None:
    visit(page, link)
    rows = cells(page)
    for index in (0, 5):
        page.locator(f".ag-row[row-index='{index}']").get_by_label("toggle row selection").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    opens_with = page.get_by_role("tabpanel", name="Parallel Coordinates Plot")
    expect(opens_with).to_contain_text(re.compile("Metrics:.*valid/accuracy", re.DOTALL))
    expect(opens_with).not_to_contain_text("train/loss")
    for toggle in page.get_by_text("Show diff only").all():
        toggle.click()
    expect(page.get_by_text("train.optimizer.lr", exact=True).last).to_be_visible()
    details = page.locator("body").inner_text().split("Run details")[1]
    for row in (rows[0], rows[5]):
        assert row["attributes.`Run Name`"] in details
        assert row["params.`train.optimizer.lr`"] in details.split("Parameters")[1]
        for name in METRICS[:2]:
            assert name in details
            assert f"{float(row[f'metrics.`{name}`']):.3f}".rstrip("0") in details.split("Metrics")[1]
    expect(page.get_by_text("train.batch_size")).to_have_count(0)
    page.get_by_text("Run details").evaluate("heading => heading.scrollIntoView()")
    screenshot("compare")
    # Of many metrics the page has only those that are in view.
    follow(page, page.get_by_role("link", name="train/loss", exact=True).last)
    for row in (rows[0], rows[5]):
        expect(page.locator("body")).to_contain_text(f"{row['attributes.`Run Name`']} (train/loss)")
    expect(page.locator(".scatterlayer .trace").first).to_be_visible()
    screenshot("compare-curves")


@pytest.mark.slow
def test_a_run_s_model_and_pictures(page: Page, link: str, screenshot: Any) -> None:
    visit(page, link)
    best = cells(page)[0]["attributes.`Run Name`"]
    page.get_by_role("link", name=best, exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    for name in ["plots", "pictures", "confusion.png"]:
        page.get_by_text(name, exact=True).click()
    picture(page.locator("img[src^=blob]").first, width=870)
    screenshot("picture")
    page.get_by_text("mistakes.png", exact=True).click()
    picture(page.locator("img[src^=blob]").first, width=1000)
    page.get_by_role("tab", name="Overview").click()
    follow(page, page.get_by_role("link", name=best.replace(".", "_"), exact=True).first)
    expect(page.get_by_text("Ready")).to_be_visible()
    expect(page.get_by_role("link", name=best).first).to_be_visible()
    screenshot("model")


def follow(page: Page, link: Locator) -> None:
    """Go where `link` leads: a click can miss one that is drawn anew just then, or open another tab."""
    page.goto(page.url.split("#")[0] + str(link.get_attribute("href")))


def picture(image: Locator, width: int) -> None:
    """See that this image is shown, in its own width."""
    expect(image).to_be_visible()
    deadline = time.monotonic() + 10
    while (shown := image.evaluate("image => image.complete && image.naturalWidth")) != width:
        assert time.monotonic() < deadline, f"the picture is {shown} pixels wide"
        time.sleep(0.1)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_sweep_s_link_goes_to_the_browser_and_ctrl_c_ends_the_server(
    page: Page, project: Project, tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    port = free_port()
    command = ["python", "-m", "tools.ui", "--sweep", "lr", "--port", str(port)]
    # The desktop's browser is a command that writes down what it is to open.
    with served(project, *command, DISPLAY=":0", BROWSER=f"sh -c 'echo \"$1\" > {opened}' sh %s") as (link, process):
        page.goto(link)
        expect(page.get_by_placeholder("metrics.rmse")).to_have_value("tags.`sweep` = 'lr'")
        expect(page.get_by_text("6 matching runs")).to_be_visible()
        assert opened.read_text().strip() == link
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in output
    check_port(port, "")


@pytest.mark.slow
def test_make_ui_serves_the_runs_on_this_machine_only(project: Project) -> None:
    port = free_port()
    make = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "ui", f"PORT={port}"]
    with served(project, *make) as (link, process):
        assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/2/runs?")
        assert "<title>MLflow</title>" in urllib.request.urlopen(link).read().decode()
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, signal.SIGTERM)  # make sends it again, to what is ending already
        output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output
    assert not alive(children)
    check_port(port, "")


def ui(project: Project, *arguments: str, fails: bool = False, **environment: str) -> str:
    environment = {"DISPLAY": "", "WAYLAND_DISPLAY": "", **environment}
    output = project("python", "-m", "tools.ui", *arguments, fails=fails, **environment)
    assert "Traceback" not in output
    return output


@pytest.mark.slow
def test_a_server_elsewhere_gets_the_view_and_nothing_is_started(page: Page, project: Project, link: str) -> None:
    server = link.split("/#")[0].replace("http://", "http://somebody:secret@")
    output = ui(project, MLFLOW_TRACKING_URI=f"{server}/")
    shared = f"{link}&viewStateShareKey=training-runs"
    assert output == f"training runs:   {shared}\nlearning curves: {shared}&compareRunsMode=CHART\n"
    page.goto(shared)
    expect(page.get_by_test_id("saved-views-trigger")).to_have_text("Training runs")
    expect(page.get_by_text("Exit shared view")).to_be_visible()


@pytest.mark.slow
def test_the_plain_page_for_an_unknown_version(
    page: Page, project: Project, link: str, screenshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    page.goto(link.split("/#")[0] + prepare(Runs(), "lr", "4.0.0").path)
    expect(page.get_by_placeholder("metrics.rmse")).to_have_value("tags.`sweep` = 'lr'")
    expect(page.get_by_text("6 matching runs")).to_be_visible()
    screenshot("plain")


@pytest.mark.slow
def test_a_port_that_is_taken(project: Project, link: str) -> None:
    port = link.split("/#")[0].split(":")[-1]
    output = ui(project, "--port", port, fails=True)
    assert (
        output
        == f"error: port {port} of 127.0.0.1 is taken, perhaps by an earlier server; another: make ui PORT=5001\n"
    )


def test_ports_that_are_none() -> None:
    for port in (-1, 65536, 10**9):
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used"):
            check_port(port, "")


@pytest.mark.slow
def test_no_runs(project: Project) -> None:
    for environment in ({"MLFLOW_TRACKING_URI": "sqlite:///none.db"}, {"MLFLOW_EXPERIMENT_NAME": "another"}):
        output = ui(project, fails=True, **environment)
        assert re.match("error: there are no runs .*: make repro comes first; python -m tools.sync adds .*\n$", output)
    assert not (project.root / "none.db").exists()


@pytest.mark.slow
def test_an_unknown_sweep(project: Project) -> None:
    output = ui(project, "--sweep", "Lr", "--port", str(free_port()), fails=True)
    assert output == "error: unknown sweep 'Lr' (did you mean lr?); accepted: lr\n"


@pytest.mark.parametrize("shown_by", ["3.170.1", "4.0.0", "of an unknown version"])
def test_a_view_is_written_for_the_known_version_alone(
    compared: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown_by: str,
) -> None:
    shutil.copy(compared.root / "mlflow.db", tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = Runs()
    plain = f"/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    view = prepare(store, None, shown_by)
    assert view.path == view.shared_path == plain
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: MLflow {shown_by} may keep views in another way than {KNOWN}, so none was ")
    assert not store.client.get_experiment(store.experiment_id).tags
    view = prepare(store, None, f"{KNOWN}.9")
    assert (view.path, view.shared_path) == (plain, f"{plain}&viewStateShareKey=training-runs")
    assert list(store.client.get_experiment(store.experiment_id).tags) == ["mlflow.sharedViewState.training-runs"]
    assert capsys.readouterr().err == ""


def test_a_server_that_does_not_say_its_version() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.handle_request).start()
        assert server_version(f"http://127.0.0.1:{server.server_port}") == "of an unknown version"


def test_what_varies_comes_in_the_order_of_the_params_and_not_all_of_it() -> None:
    runs = [{"b": "1", "a": "1", "same": "0"}, {"b": "2", "a": "1", "same": "0", "old": "x"}, {"a": "2", "same": "0"}]
    assert varying(runs, ["a", "same", "b"]) == ["a", "b", "old"]
    assert varying(runs[:1], ["a", "same", "b"]) == []
    many = [str(number) for number in range(20)]
    assert varying([dict.fromkeys(many, value) for value in "xy"], many) == many[:8]


def test_runs_without_a_colour_get_one(compared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(compared.root / "mlflow.db", tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = Runs()
    kept, *others = store.store.search()
    for run in others:
        store.client.delete_tag(run.info.run_id, TAG)
    prepare(store, None, f"{KNOWN}.9")
    given = {run.info.run_id: run.data.tags[TAG] for run in store.store.search()}
    assert len(set(given.values())) == len(given) == 4
    assert given[kept.info.run_id] == kept.data.tags[TAG]


def test_a_view_names_columns_as_the_page_does() -> None:
    state = state_of(["train.seed"], ["best/valid_accuracy", "test/loss"])
    columns = ["metrics.`best/valid_accuracy`", "metrics.`test/loss`", "params.`train.seed`"]
    assert state["columnOrder"] == ["attributes.`Run Name`", "runDateAndNestInfo", *columns]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/valid_accuracy`", False)
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == CURVES
    params = [f"train.optimizer.arguments.Name.number_{number}" for number in range(8)]
    assert len(packed("Training runs", state_of(params, METRICS))) < 2000, "some stores keep 5,000 characters of a tag"


def test_a_name_cannot_end_the_script() -> None:
    assert as_script({"a": "</script>"}) == '{"a": "\\u003c/script>"}'

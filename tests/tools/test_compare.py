"""Comparisons of real trainings in a real store."""

import re
import shutil
import sys

import pytest
from mlflow.artifacts import load_text
from rich.cells import cell_len

from stages.base.errors import InputError
from stages.tracking.store import Store
from tests.conftest import Project
from tools.compare import main
from tools.runs import Runs


def test_columns_are_aligned_in_any_script(compared: Project) -> None:
    shutil.copy(compared.root / "mlflow.db", compared.root / "names.db")
    store = Store(f"sqlite:///{compared.root}/names.db", "repronet")
    long = "a long name, longer than any of the figures"
    for run in store.search(having=["mlflow.runName"]):
        new = {"seed-0": "基準", "seed-1": long}.get(run.info.run_name, run.info.run_name)
        store.client().update_run(run.info.run_id, name=new)
    output = compared("python", "-m", "tools.compare", "基準", long, "closed", MLFLOW_TRACKING_URI=store.uri)
    lines = [line for line in output.splitlines() if line.startswith("  ")]
    names, accuracy = lines[0], next(line for line in lines if line.startswith("  test/accuracy"))
    places = [cell_len(names[: names.index(name)]) for name in ("基準", long, "closed")]
    assert places == [match.start() for match in re.finditer(r"0\.\d+", accuracy)]


@pytest.fixture
def at_the_root(compared: Project, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where comparisons can be made in this process, which saves the start of another."""
    monkeypatch.chdir(compared.root)
    return monkeypatch


def test_seeds_make_no_difference_and_the_bias_start_does(compared: Project) -> None:
    page = compared.root / "page.html"
    output = compared("python", "-m", "tools.compare", "seed-0", "seed-1", "closed", "--html", str(page), "--log")
    of_seed, of_bias = output.split("seed-1 against seed-0: ")[1].split("closed against seed-0: ")
    assert "No difference can be told (p >= 0.05)." in of_seed
    assert "The difference is real: seed-0 is better (p < 0.05)." in of_bias
    assert "on the same 359 test images" in of_seed
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith("  ")}
    assert rows["train.seed"] == ["0", "1", "0"]
    assert rows["train.net.arguments.Net.bias_start"] == ["1.0", "1.0", "null"]
    assert [name for name in rows if name.startswith(("train.", "prepare."))] == [
        "train.net.arguments.Net.bias_start",
        "train.seed",
    ]
    by_name = {run.info.run_name: run.data.metrics["test/accuracy"] for run in compared.runs()}
    assert rows["test/accuracy"] == [f"{by_name[name]:.6g}" for name in ("seed-0", "seed-1", "closed")]
    assert "seed-0, seed-1" in output, "mean over the seeds"
    assert "The same in all: data, code, environment." in output

    assert "McNemar's exact test: p < 0.0001." in of_bias

    text = page.read_text()
    assert "The difference is real: seed-0 is better" in text
    assert "<td>train.net.arguments.Net.bias_start</td>" in text
    closed = next(run for run in compared.runs() if run.info.run_name == "closed")
    assert load_text(f"{closed.info.artifact_uri}/comparisons/seed-0-seed-1.html") == text


def test_the_page_is_logged_under_any_names(store: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = store.find("seed-0"), store.find("closed")
    store.client.update_run(second.id, name=f"../a b/{'long' * 100}")
    monkeypatch.setattr(sys, "argv", ["", first.id, second.id, "--log"])
    main()
    pages = [file.path for file in store.client.list_artifacts(first.id, "comparisons")]
    assert f"comparisons/.._a_b_{('long' * 100)[:53]}.html" in pages


def test_other_test_images_cannot_be_compared(
    at_the_root: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_the_root.setattr(sys, "argv", ["", "seed-0", "others"])
    main()
    output = capsys.readouterr().out
    assert "others against seed-0: cannot be compared, they were tested on different images" in output
    assert "McNemar" not in output


def test_best_is_by_validation_and_ids_name_runs(
    compared: Project, at_the_root: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = compared.runs()
    best = max(evaluated, key=lambda run: run.data.metrics["best/valid_accuracy"])
    at_the_root.setattr(sys, "argv", ["", "best", evaluated[0].info.run_id])
    main()
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["run", best.info.run_name, evaluated[0].info.run_name]


def test_wrong_names(at_the_root: pytest.MonkeyPatch) -> None:
    at_the_root.setattr(sys, "argv", ["", "seed-0", "seed-7"])
    with pytest.raises(InputError) as error:
        main()
    assert "no evaluated run is called 'seed-7' in" in str(error.value)
    assert "there are: best, seed-1, seed-0, closed, others" in str(error.value)


def test_a_store_that_cannot_be_read(compared: Project) -> None:
    output = compared("python", "-m", "tools.compare", "a", "b", fails=True, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "error: MLflow at http://127.0.0.1:9 cannot be read" in output
    assert "Traceback" not in output

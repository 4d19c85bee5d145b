"""Comparisons: the statistics against scipy's, and the command on real trainings in a real store."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.artifacts import load_text
from scipy import stats

from stages.evaluate import evaluate
from stages.tracking import Tracker
from stages.train import train
from tests.conftest import ROOT, Project, changed, runs
from tools.statistics import bootstrap_interval, mcnemar, mean_interval


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (5, 5), (2, 9), (30, 10), (400, 523)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_by_hand() -> None:
    # Of 10 images, 1 or fewer on one side: 2 * (1 + 10) / 1024.
    assert mcnemar(1, 9) == 22 / 1024


def test_bootstrap_interval_is_that_of_resampled_images() -> None:
    difference = np.repeat([-1, 1, 0], [30, 50, 920])
    expected = stats.bootstrap(
        (difference,), np.mean, n_resamples=5000, method="percentile", random_state=np.random.RandomState(1)
    ).confidence_interval
    low, high = bootstrap_interval(30, 50, 1000)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert bootstrap_interval(30, 50, 1000) == (low, high)
    assert bootstrap_interval(0, 0, 1000) == (0, 0)


def test_mean_interval_is_student_s() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0])
    low, high = stats.t.interval(0.95, 2, loc=2, scale=stats.sem([1, 2, 3]))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(mean_interval([1.0])[1])


@pytest.fixture(scope="module")
def project(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project whose store has four evaluated runs; one was tested on images of another digest."""
    project = Project(tmp_path_factory.mktemp("compare"))
    other = shutil.copytree(digits, project.root / "other")
    facts = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(facts.replace('"test": "', '"test": "0'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        trainings: list[tuple[str, Path, dict[str, Any]]] = [
            ("seed-0", digits, {}),
            ("seed-1", digits, {"train.seed": 1}),
            ("closed", digits, {"train.net.bias_start": None}),
            ("others", other, {}),
        ]
        for name, prepared, changes in trainings:
            knobs = changed(changes)
            folder = project.root / name
            environment = {"DVC_ROOT": str(project.root), "DVC_EXP_NAME": name}
            weights, history = folder / "net", folder / "train.csv"
            train(knobs.train, prepared, weights, history, Tracker.from_environment(knobs, environment))
            tracker = Tracker.from_environment(knobs, environment)
            evaluate(knobs, weights, prepared, history, folder / "evaluate.json", folder / "plots", tracker)
    return project


def compare(project: Project, *arguments: str, fails: bool = False) -> str:
    return project("python", "-m", "tools.compare", *arguments, fails=fails)


def test_seeds_make_no_difference_and_the_bias_start_does(project: Project) -> None:
    page = project.root / "page.html"
    output = compare(project, "seed-0", "seed-1", "closed", "--html", str(page), "--log")
    of_seed, of_bias = output.split("seed-1 against seed-0: ")[1].split("closed against seed-0: ")
    assert "No difference can be told (p >= 0.05)." in of_seed
    assert "The difference is real: seed-0 is better (p < 0.05)." in of_bias
    assert "on the same 359 test images" in of_seed
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith("  ")}
    assert rows["train.seed"] == ["0", "1", "0"]
    assert rows["train.net.bias_start"] == ["1.0", "1.0", "null"]
    assert [name for name in rows if name.startswith(("train.", "prepare."))] == ["train.net.bias_start", "train.seed"]
    assert rows["test/accuracy"] == [f"{r.data.metrics['test/accuracy']:.6g}" for r in reversed(stored(project)[1:])]
    assert "seed-0, seed-1" in output, "mean over the seeds"
    assert "The same in all: data, code, environment." in output

    text = page.read_text()
    assert "The difference is real: seed-0 is better" in text
    closed = next(run for run in stored(project) if run.info.run_name == "closed")
    assert load_text(f"{closed.info.artifact_uri}/comparisons/seed-0-seed-1.html") == text


def stored(project: Project) -> list[Any]:
    return runs(f"sqlite:///{project.root}/mlflow.db")


def test_other_test_images_cannot_be_compared(project: Project) -> None:
    output = compare(project, "seed-0", "others")
    assert "others against seed-0: cannot be compared, they were tested on different images" in output
    assert "McNemar" not in output


def test_best_is_by_validation_and_ids_name_runs(project: Project) -> None:
    evaluated = stored(project)
    best = max(evaluated, key=lambda run: run.data.metrics["best/valid_accuracy"])
    output = compare(project, "best", evaluated[0].info.run_id)
    assert output.splitlines()[0].split() == ["run", best.info.run_name, evaluated[0].info.run_name]


def test_wrong_names(project: Project) -> None:
    output = compare(project, "seed-0", "seed-7", fails=True)
    assert "error: no evaluated run is called 'seed-7' in" in output
    assert "there are: best, others, closed, seed-1, seed-0" in output


def test_a_store_that_cannot_be_read(project: Project) -> None:
    output = project("python", "-m", "tools.compare", "a", "b", fails=True, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "error: MLflow at http://127.0.0.1:9 cannot be read" in output
    assert "Traceback" not in output

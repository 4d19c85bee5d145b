"""Comparisons: the statistics against scipy's, and the command on real trainings in a real store."""

import numpy as np
import pytest
from mlflow.artifacts import load_text
from scipy import stats

from tests.conftest import Project
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


def compare(project: Project, *arguments: str, fails: bool = False) -> str:
    return project("python", "-m", "tools.compare", *arguments, fails=fails)


def test_seeds_make_no_difference_and_the_bias_start_does(compared: Project) -> None:
    page = compared.root / "page.html"
    output = compare(compared, "seed-0", "seed-1", "closed", "--html", str(page), "--log")
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

    text = page.read_text()
    assert "The difference is real: seed-0 is better" in text
    closed = next(run for run in compared.runs() if run.info.run_name == "closed")
    assert load_text(f"{closed.info.artifact_uri}/comparisons/seed-0-seed-1.html") == text


def test_other_test_images_cannot_be_compared(compared: Project) -> None:
    output = compare(compared, "seed-0", "others")
    assert "others against seed-0: cannot be compared, they were tested on different images" in output
    assert "McNemar" not in output


def test_best_is_by_validation_and_ids_name_runs(compared: Project) -> None:
    evaluated = compared.runs()
    best = max(evaluated, key=lambda run: run.data.metrics["best/valid_accuracy"])
    output = compare(compared, "best", evaluated[0].info.run_id)
    assert output.splitlines()[0].split() == ["run", best.info.run_name, evaluated[0].info.run_name]


def test_wrong_names(compared: Project) -> None:
    output = compare(compared, "seed-0", "seed-7", fails=True)
    assert "error: no evaluated run is called 'seed-7' in" in output
    assert "there are: best, seed-1, seed-0, closed, others" in output


def test_a_store_that_cannot_be_read(compared: Project) -> None:
    output = compared("python", "-m", "tools.compare", "a", "b", fails=True, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "error: MLflow at http://127.0.0.1:9 cannot be read" in output
    assert "Traceback" not in output

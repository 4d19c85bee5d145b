"""The statistics of comparisons, against formulas and against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from tools.statistics import bootstrap_interval, mcnemar, mean_interval


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (5, 5), (2, 9), (30, 10), (400, 523)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    n, fewer = first + second, min(first, second)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
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

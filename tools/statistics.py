"""Whether a difference between classifiers is real: pure functions of counts and arrays."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Of the images that just one of two classifiers gets right, `only_first` and `only_second` are how many each does.
    If the classifiers were equally good, either would be as likely: a binomial test. McNemar, Psychometrika 12, 1947.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n))


def bootstrap_interval(only_first: int, only_second: int, n_images: int) -> tuple[float, float]:
    """Return the 95 % interval of second minus first accuracy, over resamples of the images that both were tested on.

    An image counts -1, 0 or 1, so a resample of all images is a draw of how many of each there are. The percentile
    method of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. The same counts give the same interval.
    """
    shares = np.array([only_first, only_second, n_images - only_first - only_second]) / n_images
    draws = np.random.RandomState(0).multinomial(n_images, shares, RESAMPLES)
    low, high = np.percentile((draws[:, 1] - draws[:, 0]) / n_images, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half the width of its 95 % interval (Student's t); the half is NaN for fewer than two values."""
    from scipy.stats import t  # 0.3 s to import, needed only where there are several seeds

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))

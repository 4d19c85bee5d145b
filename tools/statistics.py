"""Whether a difference between classifiers is real: pure functions of counts and arrays.

scipy.special is imported where it is needed, since that takes 0.2 s; scipy.stats takes 0.7 s.
"""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (Psychometrika 12, 1947).

    `only_first` and `only_second` count the images that just one of two classifiers gets right. If the classifiers
    were equally good, each of these images would be as likely to be the one's as the other's: a binomial test.
    """
    from scipy.special import bdtr

    n_images = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), n_images, 0.5)))


def bootstrap_interval(only_first: int, only_second: int, n_images: int) -> tuple[float, float]:
    """Return the 95 % interval of second minus first accuracy, over resamples of the images that both were tested on.

    The percentile method of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. An image counts -1, 0 or
    1, so a resample is a draw of three counts. scipy.stats.bootstrap, which draws image by image, gives the same
    interval to within its own randomness and takes 1.5 s instead of 2 ms for 10,000 images. The same counts always
    give the same interval.
    """
    shares = np.array([only_first, only_second, n_images - only_first - only_second]) / n_images
    draws = np.random.RandomState(0).multinomial(n_images, shares, RESAMPLES)
    low, high = np.percentile((draws[:, 1] - draws[:, 0]) / n_images, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half the width of its 95 % interval (Student's t); the half is NaN for fewer than two values."""
    from scipy.special import stdtrit

    if (n := len(values)) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))

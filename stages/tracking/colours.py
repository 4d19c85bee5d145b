"""Colours of runs in MLflow's charts, which would else take them from a hash of the run's id: two of five are alike."""

from collections import Counter
from collections.abc import Iterable

TAG = "mlflow.runColor"  # where MLflow's pages keep the one that a visitor chose

# Each as far from those before it as one can be on white.
COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"),
    *("#0000f8", "#f818f8", "#204000", "#0020a8", "#f80078", "#700048", "#986800", "#a0b878", "#00c898", "#9800a0"),
    *("#f89870", "#383050", "#0078f8", "#187860"),
)


def least_used(taken: Iterable[str]) -> str:
    """Return the colour that the fewest of other runs have, the first of several."""
    counts = Counter(taken)
    return min(COLOURS, key=lambda colour: counts[colour])

"""Metrics against numbers worked out by hand, and against scikit-learn on random ones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from stages.base.errors import InputError
from stages.training import metrics

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTED = torch.tensor([0, 0, 1, 1, 0, 0])  # class 2 is never predicted


def test_accuracy() -> None:
    assert metrics.accuracy(PREDICTED, LABELS) == 3 / 6


def test_hits() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert metrics.hits(scores, torch.tensor([1, 1, 1])) == 2
    assert metrics.hits(scores, torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.6, 0.4]])) == 2


def test_confusion() -> None:
    assert metrics.confusion(PREDICTED, LABELS, 3).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_per_class() -> None:
    result = metrics.per_class(metrics.confusion(PREDICTED, LABELS, 3))
    assert result.precision.tolist() == [2 / 4, 1 / 2, 0]
    assert result.recall.tolist() == [2 / 3, 1 / 2, 0]
    assert result.f1.tolist() == [4 / 7, 2 / 4, 0]
    assert (result.correct.tolist(), result.total.tolist(), result.predicted.tolist()) == (
        [2, 1, 0],
        [3, 2, 1],
        [4, 2, 0],
    )


def test_per_class_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(7, (2, 500), generator=generator)
    predicted[predicted == 3] = 4
    table = metrics.confusion(predicted, labels, 7)
    assert table.tolist() == confusion_matrix(labels, predicted, labels=range(7)).tolist()
    result = metrics.per_class(table)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(7), zero_division=0)
    assert result.precision.tolist() == pytest.approx(precision.tolist())
    assert result.recall.tolist() == pytest.approx(recall.tolist())
    assert result.f1.tolist() == pytest.approx(f1.tolist())


def test_calibration_error() -> None:
    # Five bins of 0.2. The two of 0.9 share a bin, one is right: |1.8 - 1| = 0.8. 0.7, right: 0.3. 0.6, wrong: 0.6.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1])
    assert metrics.expected_calibration_error(probabilities, labels, 5) == pytest.approx((0.8 + 0.3 + 0.6) / 4)


def test_calibration_error_of_sure_and_right_is_zero() -> None:
    assert metrics.expected_calibration_error(torch.eye(3), torch.arange(3), 15) == 0


ANSWERS = metrics.Answers(
    labels=torch.tensor([0, 0, 1]),
    predicted=torch.tensor([0, 1, 1]),
    probabilities=torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]),
    are_probabilities=True,
    bins=15,
)


def test_scores_that_are_no_probabilities_have_no_calibration_error() -> None:
    assert metrics.measured(replace(ANSWERS, are_probabilities=False)).keys() == {"accuracy", "auroc", "macro_f1"}


def test_a_function_in_the_table_is_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    before = metrics.measured(ANSWERS)
    assert before.keys() == {"accuracy", "auroc", "ece", "macro_f1"}
    assert before["accuracy"] == pytest.approx(2 / 3)
    monkeypatch.setitem(metrics.METRICS, "lowest_recall", lambda answers: answers.per_class.recall.min().item())
    assert metrics.measured(ANSWERS) == before | {"lowest_recall": 0.5}
    with pytest.raises(InputError, match=r"'lowest_recall' is the name of what stands there already"):
        metrics.measured(ANSWERS, taken=["lowest_recall"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0.5, "'mine' is 0.5, should be a class or function"),
        (lambda answers: answers.per_class.recall, r"'mine' gives tensor\(.*, should be a finite number"),
        (lambda _answers: float("nan"), "'mine' gives nan, should be a finite number"),
        (lambda _answers: None, "'mine' gives None, should be a finite number"),
    ],
)
def test_what_is_no_metric(entry: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics.METRICS, "mine", entry)
    with pytest.raises(InputError, match=r"METRICS in stages/training/metrics\.py: " + message):
        metrics.measured(ANSWERS)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_area_under_roc_is_scikit_learn_s(n_classes: int) -> None:
    generator = torch.Generator().manual_seed(n_classes)
    labels = torch.randint(n_classes, (300,), generator=generator)
    scores = torch.randn(300, n_classes, generator=generator) + 2 * torch.eye(n_classes)[labels]
    shares = scores.softmax(1).mul(20).round() / 20  # many are equal
    expected = [roc_auc_score(labels == label, shares[:, label]) for label in range(n_classes)]
    assert metrics.area_under_roc(shares, labels) == pytest.approx(np.mean(expected))
    assert math.isnan(metrics.area_under_roc(shares, torch.zeros(300, dtype=torch.int64)))
    without = labels != 1
    if n_classes == 2:
        return
    left = [roc_auc_score(labels[without] == label, shares[without, label]) for label in range(n_classes) if label != 1]
    assert metrics.area_under_roc(shares[without], labels[without]) == pytest.approx(np.mean(left))

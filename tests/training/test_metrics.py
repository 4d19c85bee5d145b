"""Metrics against numbers worked out by hand, and against scikit-learn on random ones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)
from torch.nn.functional import cross_entropy

from stages.base.errors import InputError
from stages.training import calibration, metrics
from stages.training.curves import curve, mean

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
    assert calibration.bins(probabilities, labels, 5).error == pytest.approx((0.8 + 0.3 + 0.6) / 4)


def test_calibration_error_of_sure_and_right_is_zero() -> None:
    assert calibration.bins(torch.eye(3), torch.arange(3), 15).error == 0


ANSWERS = metrics.Answers(
    labels=torch.tensor([0, 0, 1]),
    predicted=torch.tensor([0, 1, 1]),
    probabilities=torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]),
    are_probabilities=True,
    bins=15,
)


WITHOUT_PROBABILITIES = {"accuracy", "auroc", "average_precision", "balanced_accuracy", "kappa", "macro_f1"}


def test_scores_that_are_no_probabilities_have_no_calibration_error() -> None:
    assert metrics.measured(replace(ANSWERS, are_probabilities=False)).keys() == WITHOUT_PROBABILITIES


def test_a_function_in_the_table_is_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    before = metrics.measured(ANSWERS)
    assert before.keys() == WITHOUT_PROBABILITIES | {"brier", "ece"}, "top5 says nothing of two classes"
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


def random_answers(n_classes: int) -> metrics.Answers:
    generator = torch.Generator().manual_seed(n_classes)
    labels = torch.randint(n_classes, (300,), generator=generator)
    scores = torch.randn(300, n_classes, generator=generator) + 2 * torch.eye(n_classes)[labels]
    shares = scores.softmax(1).mul(20).round() / 20  # many are equal
    return metrics.Answers(labels, scores.argmax(1), shares, True, 15)


@pytest.mark.parametrize("n_classes", [2, 7])
def test_metrics_are_scikit_learn_s(n_classes: int) -> None:
    answers = random_answers(n_classes)
    labels, shares = answers.labels.numpy(), answers.probabilities.numpy()
    one_hot = np.eye(n_classes)[labels]
    expected = {
        "accuracy": accuracy_score(labels, answers.predicted),
        "auroc": roc_auc_score(one_hot, shares),
        "average_precision": average_precision_score(one_hot, shares),
        "balanced_accuracy": balanced_accuracy_score(labels, answers.predicted),
        "brier": sum(brier_score_loss(one_hot[:, label], shares[:, label]) for label in range(n_classes)),
        "kappa": cohen_kappa_score(labels, answers.predicted),
        "macro_f1": f1_score(labels, answers.predicted, average="macro"),
    }
    if n_classes > 5:
        # Of equal shares torch's and scikit-learn's five may be others: here none are.
        distinct = shares + np.linspace(0, 1e-6, n_classes)
        answers = replace(answers, probabilities=torch.tensor(distinct))
        expected["top5"] = top_k_accuracy_score(labels, distinct, k=5)
    found = metrics.measured(answers)
    assert found.pop("ece") > 0
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n_classes", [2, 7])
def test_curves_are_scikit_learn_s(n_classes: int) -> None:
    answers = random_answers(n_classes)
    for label in range(n_classes):
        found = answers.curve(label)
        assert found is not None
        is_class, of_class = (answers.labels == label).numpy(), answers.probabilities[:, label].numpy()
        fallout, recall, _ = roc_curve(is_class, of_class, drop_intermediate=False)
        np.testing.assert_allclose([found.fallout, found.recall], [fallout, recall])
        precision, recall, _ = precision_recall_curve(is_class, of_class)
        np.testing.assert_allclose([found.precision, found.recall], [precision[::-1], recall[::-1]])


def test_classes_without_images_have_no_curve_and_count_nowhere() -> None:
    answers = random_answers(3)
    without = answers.labels != 1
    answers = metrics.Answers(
        answers.labels[without], answers.predicted[without], answers.probabilities[without], True, 15
    )
    areas = [area for area, _ in answers.areas]
    assert [math.isnan(area) for area in areas] == [False, True, False]
    assert metrics.measured(answers)["auroc"] == pytest.approx((areas[0] + areas[2]) / 2)
    recall = answers.per_class.recall
    assert metrics.measured(answers)["balanced_accuracy"] == pytest.approx((recall[0] + recall[2]).item() / 2)
    assert math.isnan(mean([math.nan]))
    assert curve(torch.rand(3), torch.ones(3, dtype=torch.bool)) is None


def test_kappa_where_chance_would_always_agree() -> None:
    assert metrics.kappa(torch.tensor([[5, 0], [0, 0]])) == 0


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_of_the_highest_likelihood(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator).flatten()  # so they can be believed
    found = calibration.temperature(scores * factor, labels)
    assert found == pytest.approx(factor, rel=0.1)
    losses = [cross_entropy(scores * factor / (found * off), labels).item() for off in (1, 0.999, 1.001)]
    assert min(losses) == losses[0]
    assert (
        calibration.bins((scores * 4 / calibration.temperature(scores * 4, labels)).softmax(1), labels, 15).error < 0.05
    )


def test_the_temperature_has_bounds_and_needs_mistakes() -> None:
    scores = torch.eye(3)
    assert calibration.temperature(scores, torch.arange(3)) == 1
    assert calibration.temperature(scores, torch.tensor([1, 2, 0])) == pytest.approx(10, rel=1e-6)
    unsure, labels = torch.tensor([[0.01, 0]]).repeat(100, 1), torch.zeros(100, dtype=torch.int64)
    labels[0] = 1  # all others are right, and could be surer
    assert calibration.temperature(unsure, labels) == pytest.approx(0.1, rel=1e-6)

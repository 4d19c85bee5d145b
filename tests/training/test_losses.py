"""Every loss against its formula, worked out by hand for two images; and the walk through torch.nn."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.base.errors import InputError
from stages.training import losses
from stages.training.losses import INDEX, LOG_PROBABILITIES, LOSSES, REFUSED, Loss, criterion

CPU = torch.device("cpu")
SCORES = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
LABELS = torch.tensor([0, 1])


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


# -log of the softmax at the label, by the difference to the other score.
CROSS_ENTROPY = (softplus(-2) + softplus(-0.5)) / 2
# The label's score should be high, the other low: each by itself, summed over the classes.
ONE_VERSUS_REST = (softplus(-2) + softplus(0) + softplus(0) + softplus(-0.5)) / 2
# Differences from (1, 0) and (0, 1) are (1, 0) and (0, -0.5).
EXPECTED = {
    "BCELoss": ONE_VERSUS_REST,
    "BCEWithLogitsLoss": ONE_VERSUS_REST,
    "CrossEntropyLoss": CROSS_ENTROPY,
    "HuberLoss": (1 / 2 + 0.25 / 2) / 2,
    "KLDivLoss": CROSS_ENTROPY,
    "L1Loss": (1 + 0.5) / 2,
    "MSELoss": (1 + 0.25) / 2,
    "MultiLabelMarginLoss": (0 + (1 - 0.5) / 2) / 2,
    "MultiLabelSoftMarginLoss": ONE_VERSUS_REST / 2,  # it has the mean over the classes in its definition
    "MultiMarginLoss": (0 + (1 - 0.5) / 2) / 2,
    "NLLLoss": CROSS_ENTROPY,
    "PoissonNLLLoss": 1 + CROSS_ENTROPY,  # the rates, which are probabilities, add up to 1
    "SmoothL1Loss": (1 / 2 + 0.25 / 2) / 2,
    "SoftMarginLoss": ONE_VERSUS_REST,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value(name: str) -> None:
    assert criterion(name, {}, 2, CPU)(SCORES, LABELS).item() == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_train_scores_whose_softmax_are_probabilities(name: str) -> None:
    # Of ten equal images seven are of class 0: the scores with the lowest loss say so, or they do not.
    scores, labels = torch.zeros(1, 3, requires_grad=True), torch.tensor([0] * 7 + [1] * 2 + [2])
    loss, optimizer = criterion(name, {}, 3, CPU), torch.optim.Adam([scores], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss(scores.expand(10, 3), labels).backward()
        optimizer.step()
    is_share = torch.allclose(scores.softmax(1), torch.tensor([[0.7, 0.2, 0.1]]), atol=0.02)
    assert is_share == LOSSES[name].gives_probabilities


def test_every_loss_of_torch_is_used_or_refused() -> None:
    ours = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and ("Loss" in name or value.__module__ == "torch.nn.modules.loss")
    }
    assert ours - set(LOSSES) - set(REFUSED) == set()
    assert not set(LOSSES) & set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_losses_say_why_and_what_is_accepted(name: str) -> None:
    with pytest.raises(InputError) as caught:
        criterion(name, {}, 2, CPU)
    assert str(caught.value) == (
        f"train.loss.name: {name!r} cannot be used: {REFUSED[name]}; accepted: {', '.join(LOSSES)}"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_shift_of_all_scores_changes_just_the_losses_that_want_logits(name: str) -> None:
    loss = criterion(name, {}, 2, CPU)
    moved = loss(SCORES + 1, LABELS).item() != pytest.approx(loss(SCORES, LABELS).item())
    assert losses.output(name) == ("logits" if moved else "relu")


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_the_classes(name: str) -> None:
    """Certain shares are labels, and where the loss is linear in the targets, half of each is half of each loss."""
    if name in ("MultiLabelMarginLoss", "MultiMarginLoss", "NLLLoss"):
        with pytest.raises(InputError, match=f"{name!r} takes one class an image, but MixUp .* accepted .*: CrossEntr"):
            criterion(name, {}, 2, CPU, mixed=True)
        return
    loss = criterion(name, {}, 2, CPU, mixed=True)
    assert loss(SCORES, torch.eye(2)).item() == pytest.approx(EXPECTED[name])
    if name in ("BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "MultiLabelSoftMarginLoss", "PoissonNLLLoss"):
        both = [loss(SCORES, torch.tensor(labels)).item() for labels in ([0, 0], [1, 1])]
        assert loss(SCORES, torch.full((2, 2), 0.5)).item() == pytest.approx(sum(both) / 2)


def test_arguments_that_shares_do_not_go_with_are_named() -> None:
    with pytest.raises(InputError, match=r"CrossEntropyLoss refuses .*ignore_index"):
        criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"ignore_index": 1}}, 2, CPU, mixed=True)


def test_the_value_is_a_mean_over_the_images() -> None:
    for name in LOSSES:
        loss = criterion(name, {}, 2, CPU)
        twice = loss(SCORES.repeat(2, 1), LABELS.repeat(2)).item()
        assert twice == pytest.approx(EXPECTED[name]), name


def test_nll_takes_log_probabilities_as_they_are() -> None:
    assert criterion("NLLLoss", {}, 2, CPU)(SCORES.log_softmax(1), LABELS).item() == pytest.approx(CROSS_ENTROPY)


def test_arguments() -> None:
    weighted = criterion("CrossEntropyLoss", {"CrossEntropyLoss": {"weight": [1, 3]}}, 2, CPU)
    assert weighted(SCORES, LABELS).item() == pytest.approx((softplus(-2) + 3 * softplus(-0.5)) / 4)
    huber = criterion("HuberLoss", {"HuberLoss": {"delta": 0.1}}, 2, CPU)
    assert huber(SCORES, LABELS).item() == pytest.approx((0.1 * (1 - 0.05) + 0.1 * (0.5 - 0.05)) / 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "CrossEntropy",
            {},
            r"train\.loss\.name: 'CrossEntropy' is unknown \(did you mean CrossEntropyLoss\?\); accep",
        ),
        ("CrossEntropy", {}, f"accepted: {', '.join(LOSSES)}"),
        ("NLLLoss", {"MSE": {}}, r"train\.loss\.arguments: 'MSE' is unknown"),
        ("NLLLoss", {"CTCLoss": {}}, r"train\.loss\.arguments: 'CTCLoss' cannot be used: it aligns sequences"),
        ("CrossEntropyLoss", {"label_smoothing": "much"}, "CrossEntropyLoss refuses .*'label_smoothing' .* be float"),
        ("CrossEntropyLoss", {"weight": [1.0, 2.0, 3.0]}, "for 2 classes: RuntimeError: weight tensor"),
        ("CrossEntropyLoss", {"weight": ["a", "b"]}, r"CrossEntropyLoss refuses \{'weight': \['a', 'b'\]\}"),
        ("CrossEntropyLoss", {"wieght": [1, 2]}, r"\.wieght: not an .* mean weight\?\); accepted: weight, ignore_ind"),
        ("NLLLoss", {"reduction": "none"}, r"NLLLoss\.reduction: not an argument to give here"),
        ("KLDivLoss", {"log_target": True}, r"KLDivLoss\.log_target: not an argument to give here"),
        ("HuberLoss", {"delta": -1.0}, "HuberLoss refuses .*-1"),
        ("MultiMarginLoss", {"p": 3}, "MultiMarginLoss refuses .*'p': 3"),
        ("BCEWithLogitsLoss", {"pos_weight": [1.0, 2.0, 3.0]}, "BCEWithLogitsLoss refuses .* for 2 classes"),
    ],
)
def test_wrong_choices_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    given = arguments if any(isinstance(value, dict) for value in arguments.values()) else {name: arguments}
    with pytest.raises(InputError, match=message):
        criterion(name, given if arguments else {}, 2, CPU)


class PowerLoss(nn.Module):
    """A loss of the user's own: the mean of 1 - p, to a power."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        return ((1 - log_probabilities.gather(1, labels[:, None]).exp()) ** self.power).mean()


class EachLoss(nn.Module):
    """One number for each image."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return scores.gather(1, labels[:, None]).flatten()


def test_a_class_in_the_table_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "PowerLoss", Loss(LOG_PROBABILITIES, INDEX, PowerLoss))
    wrong = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(0.5))]
    assert criterion("PowerLoss", {}, 2, CPU)(SCORES, LABELS).item() == pytest.approx(sum(wrong) / 2)
    squared = criterion("PowerLoss", {"PowerLoss": {"power": 2}}, 2, CPU)(SCORES, LABELS)
    assert squared.item() == pytest.approx((wrong[0] ** 2 + wrong[1] ** 2) / 2)
    with pytest.raises(InputError, match=r"PowerLoss\.powr: not an .* mean power\?\)"):
        criterion("PowerLoss", {"PowerLoss": {"powr": 2}}, 2, CPU)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        (
            "MyLoss",
            Loss(losses.SCORES, INDEX),
            r"line 'MyLoss' is no class of torch\.nn; a class of your own stands in",
        ),
        ("MyLoss", Loss(losses.SCORES, INDEX, PowerLoss), r"line 'MyLoss' is PowerLoss"),
        ("functional", Loss(losses.SCORES, INDEX), r"line 'functional' is no class of torch\.nn"),
        ("EachLoss", Loss(losses.SCORES, INDEX, EachLoss), r"it gives \(1,\) numbers, should be one"),
    ],
)
def test_an_entry_that_is_not_what_it_says(
    name: str, entry: Loss, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, name, entry)
    with pytest.raises(InputError, match=message):
        criterion(name, {}, 2, CPU)

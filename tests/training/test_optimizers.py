"""Every optimizer's defaults, what they do to a parameter, and the walk through torch.optim."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from stages.base.errors import InputError
from stages.training.optimizers import OPTIMIZERS, REFUSED, optimizer


def parameter(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value]))


def test_every_optimizer_of_torch_is_used_or_refused() -> None:
    ours = {name for name, value in vars(optim).items() if isinstance(value, type) and name != "Optimizer"}
    assert ours == set(OPTIMIZERS) | set(REFUSED)


def test_sparse_adam_is_refused_with_the_reason() -> None:
    with pytest.raises(
        InputError, match=r"'SparseAdam' cannot be used: it takes sparse gradients, .*; accepted: ASGD,"
    ):
        optimizer("SparseAdam", None, {}, [parameter()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_and_a_learning_rate(name: str) -> None:
    matrix = nn.Parameter(torch.ones(2, 2))
    for lr, expected in ((None, OPTIMIZERS[name]["lr"]), (0.25, 0.25)):
        built = optimizer(name, lr, {}, [matrix])
        assert type(built) is getattr(torch.optim, name)
        assert [group["lr"] for group in built.param_groups] == [expected]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_with_a_closure_bring_a_line_to_its_points(name: str) -> None:
    x = torch.linspace(-1, 1, 20)[:, None]
    y = x @ torch.tensor([[2.0, -1.0]]) + 0.5
    weight, bias = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(2))
    built = optimizer(name, None, {}, [weight, bias])

    def closure() -> Tensor:
        loss = nn.functional.mse_loss(x @ weight + bias, y)
        built.zero_grad()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(200):
        built.step(closure)  # type: ignore[arg-type]
    assert closure().item() < 0.85 * first


def test_adam_is_fused_where_nothing_speaks_against_it() -> None:
    matrix = nn.Parameter(torch.ones(3, 2))
    turned = nn.Parameter(torch.ones(2, 3).t())
    cases: list[tuple[str, dict[str, Any], nn.Parameter, bool | None]] = [
        ("Adam", {}, matrix, True),
        ("AdamW", {"weight_decay": 0.1}, matrix, True),
        ("Adam", {"foreach": True}, matrix, None),
        ("Adam", {"fused": False}, matrix, False),
        ("Adam", {}, turned, None),
        ("RAdam", {}, matrix, None),
    ]
    for name, arguments, parameter, expected in cases:
        built = optimizer(name, 0.1, {name: arguments}, [parameter])
        assert built.param_groups[0].get("fused") is expected, (name, arguments)
        assert built.defaults.get("fused") is expected
        parameter.sum().backward()
        before = parameter.detach().clone()
        built.step()
        assert torch.allclose(before - parameter, torch.full_like(before, 0.1), rtol=0.1), "of the sign's size"
        parameter.grad = None


def test_muon_takes_the_matrices_and_adamw_the_rest() -> None:
    matrix, bias, kernel = (nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (3,), (2, 1, 3, 3)))
    arguments = {"Muon": {"weight_decay": 0.0}, "AdamW": {"weight_decay": 0.25}}
    built = optimizer("Muon", 0.1, arguments, [matrix, bias, kernel])
    assert [[p.shape for p in group["params"]] for group in built.param_groups] == [
        [matrix.shape],
        [bias.shape, kernel.shape],
    ]
    # What is written into the groups, as a schedule does, is what the steps go by.
    for group in built.param_groups:
        group["lr"] = 0.01
    for p in (matrix, bias, kernel):
        p.grad = torch.ones_like(p)
    built.step()
    # AdamW: decay by lr * 0.25, then a first step of lr.
    assert bias.tolist() == pytest.approx([1 - 0.01 * 0.25 - 0.01] * 3)
    assert kernel.flatten().tolist() == pytest.approx([1 - 0.01 * 0.25 - 0.01] * 18)
    # Muon: the gradient made orthogonal, scaled to AdamW's usual step.
    expected = torch.ones(3, 2)
    for_muon = nn.Parameter(expected.clone())
    muon = optim.Muon([for_muon], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for_muon.grad = torch.ones(3, 2)
    muon.step()
    assert torch.equal(matrix, for_muon)


def test_muon_without_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="'Muon' takes matrices, and this net has none; AdamW takes any"):
        optimizer("Muon", None, {}, [parameter()])


def test_arguments_of_other_classes_wait() -> None:
    given = {"SGD": {"momentum": 0.5}, "AdamW": {"weight_decay": 0.1}}
    assert optimizer("SGD", None, given, [parameter()]).defaults["momentum"] == 0.5
    assert optimizer("AdamW", None, given, [parameter()]).defaults["weight_decay"] == 0.1


def test_sgd_step_with_momentum() -> None:
    weight = parameter()
    sgd = optimizer("SGD", 0.1, {}, [weight])
    for expected in (1 - 0.1, 0.9 - 0.1 * 1.9):  # gradient 1; the second step carries 0.9 of the first
        weight.grad = torch.tensor([1.0])
        sgd.step()
        assert weight.item() == pytest.approx(expected)


def test_lbfgs_finds_the_foot_of_a_parabola_at_once() -> None:
    weight = parameter(5.0)
    lbfgs = optimizer("LBFGS", 1.0, {"LBFGS": {"max_iter": 20}}, [weight])

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = (weight - 3).square().sum()
        loss.backward()
        return loss

    assert lbfgs.step(closure).item() == 4.0  # type: ignore[arg-type, attr-defined]
    assert math.isclose(weight.item(), 3.0, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Adamw", {}, r"train\.optimizer\.name: 'Adamw' is unknown \(did you mean AdamW\?\); accepted: ASGD, "),
        ("SGD", {"momentun": 0.9}, r"\.SGD\.momentun: .*\(did you mean momentum\?\); accepted: momentum, "),
        ("SGD", {"lr": 1}, r"SGD\.lr: not an argument to give here"),
        ("SGD", {"momentum": -1}, "SGD refuses .*Invalid momentum"),
        ("Adam", {"betas": [0.9]}, r"Adam refuses \{'betas': \[0.9\]\}"),
        ("Muon", {"adjust_lr_fn": "no"}, "Muon refuses .*Adjust learning rate function no is not supported"),
        ("LBFGS", {"line_search_fn": "wolfe"}, "LBFGS refuses .*RuntimeError: only 'strong_wolfe' is supported"),
        ("SGD", {"dampening": "0.1"}, "SGD refuses .*TypeError"),
        ("Adam", {"capturable": True}, "Adam refuses .*AssertionError"),
        ("LBFGS", {"closure": 1}, r"LBFGS\.closure: not an argument .*; accepted: max_iter, "),
    ],
)
def test_wrong_choices_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        optimizer(name, None, {name: arguments} if arguments else {}, [nn.Parameter(torch.ones(2, 2))])


def test_a_line_of_the_table_that_is_no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "MyOptimizer", {"lr": 0.1})
    with pytest.raises(InputError, match=r"the table's line 'MyOptimizer' is no class of torch\.optim"):
        optimizer("MyOptimizer", None, {}, [parameter()])

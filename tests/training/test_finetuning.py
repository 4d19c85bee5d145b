"""What of a net learns, and how fast: frozen layers keep every bit, and rates fall towards the first layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from stages.base.errors import InputError
from stages.base.params import WEIGHTS
from stages.nets.build import build_net, head, net_spec
from stages.nets.weights import read_weights
from stages.tracking.tracker import Tracker
from stages.train import check_params, train
from stages.training.finetuning import Freezing, groups
from stages.training.optimizers import OPTIMIZERS, optimizer
from tests.conftest import params_with

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights as torchvision publishes them, of 1,000 classes and three channels, in the folder of init_from."""
    monkeypatch.chdir(tmp_path)
    WEIGHTS.mkdir(parents=True)
    torch.manual_seed(1)
    found: dict[str, Tensor] = models.resnet18().state_dict()
    for name, tensor in found.items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
    torch.save(found, WEIGHTS / "resnet18.pth")
    return found


PRETRAINED = {
    "train.net.name": "resnet18",
    "train.init_from": "resnet18.pth",
    "train.new_head": True,
    "train.normalise": "imagenet",
    "train.batch_size": 256,
    "train.epochs": 2,
}


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Muon", "LBFGS"])
def test_all_but_the_head_keeps_every_bit(
    name: str, weights: dict[str, Tensor], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = PRETRAINED | {"train.freeze": "all_but_head", "train.ema_decay": 0.5, "train.optimizer.name": name}
    changes["train.optimizer.arguments"] = {"AdamW": {"weight_decay": 0.1}, "SGD": {"weight_decay": 0.1}}
    train(params_with(changes).train, digits, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
    trained, description = read_weights(tmp_path / "net")
    assert description is not None
    untrained = description.untrained().state_dict()
    assert description.mean == pytest.approx([0.449])
    weights["conv1.weight"] = weights["conv1.weight"].sum(1, keepdim=True)
    for tensor_name, tensor in trained.items():
        if tensor_name.startswith("fc."):
            assert tensor.shape[0] == 10
            assert not torch.equal(tensor, untrained[tensor_name])
        else:
            assert torch.equal(tensor, weights[tensor_name]), tensor_name
    assert "keeps random weights" not in capsys.readouterr().err


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rest_learns_after_the_epochs_that_are_named(name: str) -> None:
    spec = net_spec("Net", {"Net": {"hidden": [5]}}, n_classes=3, channels=1, image_size=8)
    torch.manual_seed(0)
    net = build_net(**spec)
    freezing = Freezing(net, head(net, spec), 2)
    built = optimizer(name, None, {}, net.parameters(), freezing.learning)
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9) % 3

    def closure() -> Tensor:
        built.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    for epoch in (1, 2, 3):
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        freezing.begin(epoch)
        for _ in range(2):
            built.step(closure)  # type: ignore[arg-type]
        changed = {key for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])}
        assert changed == ({"fc2.weight", "fc2.bias"} if epoch < 3 else set(before))


def test_norms_and_dropout_of_what_is_frozen_are_as_in_prediction() -> None:
    spec = net_spec("mobilenet_v2", {}, n_classes=3, channels=1, image_size=32)
    net = build_net(**spec)
    freezing = Freezing(net, head(net, spec), 1)
    freezing.begin(1)
    assert not any(layer.training for layer in net.modules())
    assert [name for name, one in net.named_parameters() if one.requires_grad] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]
    freezing.begin(2)
    assert all(layer.training for layer in net.modules())
    assert all(one.requires_grad for one in net.parameters())


def test_random_weights_that_are_kept_are_said(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train.freeze": 1, "train.epochs": 2}
    train(params_with(changes).train, digits, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
    said = capsys.readouterr().err
    assert "warning: train.freeze: 1 keeps random weights, since train.init_from is none" in said


def test_rates_fall_towards_the_first_layer_and_vectors_need_not_decay() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Linear(4, 2))
    parameters = list(net.parameters())
    assert [(group.rate, group.is_decayed) for group in groups(parameters, parameters, None, "all")] == [(1.0, True)]
    assert groups(parameters, parameters, None, "all")[0].parameters == parameters

    found = groups(parameters, parameters, 0.5, "weights")
    assert [(group.rate, group.is_decayed, len(group.parameters)) for group in found] == [
        (1.0, True, 1),
        (1.0, False, 1),
        (0.5, True, 1),
        (0.5, False, 1),
        (0.25, True, 1),
        (0.25, False, 3),  # the biases of the convolution and of its norm, and its norm's weight
    ]
    assert found[-2].parameters == [parameters[0]]
    scale = nn.Parameter(torch.ones(4, 1, 1))  # as convnext has it
    assert [group.is_decayed for group in groups([scale, parameters[0]], [scale], None, "weights")] == [False]
    # Depths are of the whole net, whatever of it learns.
    assert [group.rate for group in groups(parameters, parameters[:1], 0.5, "all")] == [0.25]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "LBFGS"])
def test_every_optimizer_takes_rates_by_layer(name: str) -> None:
    first, last, bias = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2, 2), (2,)))
    built = optimizer(name, 0.1, {}, [first, last, bias], layer_decay=0.5, decay_on="weights")
    rates = {id(one): group["lr"] for group in built.param_groups for one in group["params"]}
    assert [rates[id(one)] for one in (first, last, bias)] == pytest.approx([0.05, 0.1, 0.1])
    assert built.param_groups[0]["lr"] == 0.1, "the one that the history shows"
    decays = {id(one): group.get("weight_decay", 0) for group in built.param_groups for one in group["params"]}
    assert decays[id(bias)] == 0
    assert decays[id(first)] == built.defaults.get("weight_decay", 0)


def test_lbfgs_has_one_rate() -> None:
    with pytest.raises(InputError, match=r"train\.optimizer\.layer_decay: LBFGS has one learning rate for all layers"):
        optimizer("LBFGS", None, {}, [nn.Parameter(torch.ones(2))], layer_decay=0.5)


def test_a_decay_of_one_changes_no_bit_of_the_rates() -> None:
    one, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    assert len(optimizer("SGD", 0.1, {}, [one, other], layer_decay=1.0).param_groups) == 1


@pytest.mark.parametrize("changes", [{"train.freeze": 3}, {"train.warmup_epochs": 3}])
def test_epochs_that_leave_none(changes: dict[str, Any]) -> None:
    [name] = changes
    with pytest.raises(InputError, match=rf"{name}: 3, should be fewer than train\.epochs: 3"):
        check_params(params_with(changes | {"train.epochs": 3}).train, 1, CPU)


class OneScore(nn.Module):
    """A net whose layers know nothing of the classes."""

    def __init__(self, n_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.n_classes, self.fc = n_classes, nn.Linear(channels * image_size**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(x.flatten(1)).expand(-1, self.n_classes)
        return scores


def test_a_net_without_a_layer_for_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_net.__globals__["NETS"], "OneScore", OneScore)
    spec = net_spec("OneScore", {}, n_classes=3, channels=1, image_size=8)
    net = build_net(**spec)
    with pytest.raises(InputError, match=r"train\.freeze: 'all_but_head', but no layer of this net depends on"):
        Freezing(net, head(net, spec), "all_but_head")
    Freezing(net, head(net, spec), "none")

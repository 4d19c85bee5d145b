"""Classes of unequal size: scikit-learn's weights, in the loss and in what is drawn, and what comes of it."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from stages.base.errors import InputError
from stages.batches.loader import Loader, drawn
from stages.batches.prepared import Split
from stages.nets.weights import load_weights
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from stages.training import losses
from stages.training.losses import LOSSES, criterion
from tests.conftest import ROOT, params_with
from tests.training.test_losses import PowerLoss

CPU = torch.device("cpu")
LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_weights_are_scikit_learn_s() -> None:
    weights = losses.class_weights(LABELS, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert losses.class_weights(LABELS, 4).isfinite().all()


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_the_weighted_loss_is_torch_s_sum_over_the_images(name: str) -> None:
    scores, weights = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 3.0])
    theirs = torch.nn.CrossEntropyLoss(weight=weights, reduction="sum")(scores, LABELS) / 10
    ours = criterion(name, {}, 3, CPU, class_weights=weights)
    assert ours(scores, LABELS).item() == pytest.approx(theirs.item())
    # An image counts as much in any batch: in one of its class alone, too.
    alone = criterion(name, {}, 3, CPU)(scores[-1:], LABELS[-1:])
    assert ours(scores[-1:], LABELS[-1:]).item() == pytest.approx(3 * alone.item())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_weights(name: str) -> None:
    scores, labels = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 1])
    one, other = (criterion(name, {}, 2, CPU)(scores[[i]], labels[[i]]).item() for i in (0, 1))
    weights = torch.tensor([1.0, 3.0])
    weighted = criterion(name, {}, 2, CPU, class_weights=weights)
    assert weighted(scores, labels).item() == pytest.approx((one + 3 * other) / 2)
    if LOSSES[name].target.can_be_shares:
        mixed = criterion(name, {}, 2, CPU, mixed=True, class_weights=weights)
        assert mixed(scores, torch.eye(2)).item() == pytest.approx((one + 3 * other) / 2)


def test_a_loss_that_has_only_a_mean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "PowerLoss", losses.Loss(losses.LOG_PROBABILITIES, losses.INDEX, PowerLoss))
    criterion("PowerLoss", {}, 3, CPU)
    with pytest.raises(InputError, match=r"train\.balance: 'loss' needs .* `reduction`, and PowerLoss has none"):
        criterion("PowerLoss", {}, 3, CPU, class_weights=torch.ones(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_drawn_images_are_of_all_classes_alike_whoever_reads_them(workers: int) -> None:
    labels = torch.tensor([0] * 600 + [3] * 300 + [2] * 100)  # there is none of class 1
    split = Split(np.zeros((1000, 2, 2), np.uint8), labels=labels, rows=torch.arange(1000))
    loader = Loader(split, 64, seed=0, workers=workers, is_balanced=True)
    epochs = [torch.cat([targets for _, targets in loader.epoch(number)]) for number in (1, 2)]
    for targets in epochs:
        assert len(targets) == 1000
        assert all(270 < count < 400 for count in Counter(targets.tolist()).values())
    assert not torch.equal(*epochs)
    alone = Loader(split, 64, seed=0, is_balanced=True)
    assert torch.equal(torch.cat([targets for _, targets in alone.epoch(1)]), epochs[0])


def test_every_image_is_drawn_as_often_as_others_of_its_class_also_of_millions() -> None:
    labels = (torch.arange(3_000_000) % 10 == 0).long()  # 9 of 10 are of class 0
    places = drawn(labels, torch.Generator().manual_seed(0))
    for label in (0, 1):
        of_class = places[labels[places] == label]
        assert len(of_class) == pytest.approx(1_500_000, rel=0.01)
        assert (of_class < 1_500_000).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 400, 60 and 20 images that are hard to tell apart."""
    folder = tmp_path_factory.mktemp("unequal")
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate({"common": 400, "some": 60, "rare": 20}.items()):
        (folder / "raw" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 200, (8, 8)) + 12 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"raw/{name}/{number}.png")
    given = {"prepare.source": "folder", "prepare.path": str(folder / "raw")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        prepare(params_with(given).prepare, folder / "prepared")
    return folder / "prepared"


def test_prepare_says_how_many_there_are(unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"prepare.source": "folder", "prepare.path": str(unequal.parent / "raw")}
    prepare(params_with(given).prepare, tmp_path / "prepared")
    shown, said = capsys.readouterr()
    assert "of each class in train: common 280, rare 14, some 42" in shown
    assert "warning: common has 280 images to train on, rare 14; train.balance evens that out" in said


def test_rare_classes_are_found(unequal: Path, tmp_path: Path) -> None:
    best: dict[str, list[float]] = {"none": [], "loss": [], "sampling": []}
    for value, seed in product(best, range(3)):
        changes = {"train.balance": value, "train.epochs": 15, "train.monitor": "macro_f1", "train.seed": seed}
        train(params_with(changes).train, unequal, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
        figures = pd.read_csv(tmp_path / "train.csv")["valid/macro_f1"]
        best[value].append(figures.max())
        assert figures[load_weights(tmp_path / "net")[1].epoch - 1] == figures.max()
    none, loss, sampling = (np.mean(figures) for figures in best.values())
    assert min(loss, sampling) > none + 0.1, best

"""Transforms by their torchvision names: what they do, that no worker changes it, and what is said of wrong ones."""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn
from torchvision.transforms import v2

from stages.base.errors import InputError
from stages.base.params import TransformList
from stages.batches import transform_table, transforms
from stages.batches.normalise import Normalise
from stages.batches.prepared import DatasetInfo
from tests.conftest import Project

CPU = torch.device("cpu")

# Arguments that small images need, for those that cannot do without or whose defaults suit large ones.
NEEDED: dict[str, dict[str, Any]] = {
    "CenterCrop": {"size": 6},
    "ColorJitter": {"brightness": 0.5},
    "ElasticTransform": {"sigma": 1.0},
    "GaussianBlur": {"kernel_size": 3},
    "JPEG": {"quality": [20, 90]},
    "Pad": {"padding": 1},
    "RandomAdjustSharpness": {"sharpness_factor": 2},
    "RandomAffine": {"degrees": 30, "translate": [0.1, 0.1], "interpolation": "bilinear"},
    "RandomCrop": {"size": 6, "padding": 1},
    "RandomPosterize": {"bits": 2},
    "RandomResize": {"min_size": 6, "max_size": 10},
    "RandomResizedCrop": {"size": 8},
    "RandomRotation": {"degrees": 30, "fill": 7},
    "RandomShortestSize": {"min_size": [6, 8]},
    "RandomSolarize": {"threshold": 100},
    "Rescale": {"size": [6, 6]},
    "Resize": {"size": 6, "interpolation": "bicubic"},
    "ScaleJitter": {"target_size": [8, 8], "scale_range": [0.5, 2]},
}


def images_of(n: int, *shape: int) -> torch.Tensor:
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted({*transform_table.FIXED, *transform_table.ALIASES}))
def test_what_draws_nothing_serves_both(name: str) -> None:
    """One image at a time in training is all at once in evaluation, and draws nothing."""
    listed: TransformList = [{name: NEEDED.get(name, {})}]
    images = images_of(3, 3, 8, 8)
    before = torch.get_rng_state()
    once, again = transforms.evaluation(listed)(images), transforms.evaluation(listed)(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once, again)
    trained, labels = transforms.training(listed, 2)(images, torch.tensor([0, 1, 0]), [5, 6, 7])
    assert torch.equal(trained, once)
    assert labels.tolist() == [0, 1, 0]


# RandomPhotometricDistort takes colours only.
@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, n) for name in transform_table.RANDOM for n in (1, 3) if (name, n) != ("RandomPhotometricDistort", 1)],
)
def test_what_is_drawn_follows_from_the_image_s_seed(name: str, channels: int) -> None:
    listed: TransformList = [{name: NEEDED.get(name, {})}]
    # Where a size is drawn, something has to make it one again.
    augment = transforms.training([*listed, {"Resize": {"size": [8, 8]}}], 2)
    images = (images_of(1, channels, 24, 24) // 2 + 20).expand(8, -1, -1, -1)
    labels = torch.zeros(8, dtype=torch.int64)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, _ = augment(images, labels, range(8))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second, _ = augment(images.flip(0), labels, range(7, -1, -1))
    assert torch.equal(second.flip(0), first)
    if (name, channels) not in [("RandomGrayscale", 1), ("RandomChannelPermutation", 1)]:
        assert len({image.numpy().tobytes() for image in first}) > 1, "nothing was drawn"


def test_the_tutorial_s_composition() -> None:
    """Rescale to 12, RandomCrop of 10, ToTensor: the crop is one of the nine that there are."""
    augment = transforms.training([{"Rescale": {"size": 12}}, {"RandomCrop": {"size": 10}}, "ToTensor"], 10)
    images = images_of(20, 8, 8)
    made, labels = augment(images, torch.arange(20), range(20))
    assert made.shape == (20, 1, 10, 10)
    assert labels.tolist() == list(range(20))
    scaled = v2.Resize(12)(images.unsqueeze(1))
    corners = set()
    for image, whole in zip(made, scaled, strict=True):
        found = [(y, x) for y in range(3) for x in range(3) if torch.equal(whole[:, y : y + 10, x : x + 10], image)]
        assert len(found) == 1
        corners |= set(found)
    assert len(corners) > 4


def test_mixup_and_cutmix_share_out_the_labels() -> None:
    images, labels = torch.zeros(4, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    images[0] = 255
    mixed, shares = transforms.training(["MixUp"], 3)(images, labels, range(4))
    part = shares[1, 1].item()  # of the second image, the rest is the first's
    assert 0 < part < 1
    assert mixed.dtype == shares.dtype == torch.float32
    assert torch.allclose(mixed[1], torch.full((1, 2, 2), 1 - part))
    assert torch.allclose(shares[1], torch.tensor([1 - part, part, 0]))
    assert torch.allclose(shares.sum(1), torch.ones(4))

    cut, shares = transforms.training(["CutMix"], 3)(images_of(4, 8, 8), labels, range(4))
    assert cut.dtype == torch.uint8
    assert torch.allclose(shares.sum(1), torch.ones(4))
    both, shares = transforms.training(["CutMix", "MixUp"], 3)(images_of(4, 8, 8), labels, range(4))
    assert both.shape == (4, 1, 8, 8)
    assert torch.allclose(shares.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["Resise"], r"train: 'Resise' is unknown \(did you mean Resize\?\); accepted: AugMix, AutoAugment, "),
        ([{}], r"train: \{\} should be one name, or one name with its arguments"),
        ([{"RGB": {}, "Pad": {}}], "should be one name, or one name with its arguments"),
        (
            [{"Resize": {"sise": 4}}],
            r"train\.Resize\.sise: not an argument .* \(did you mean size\?\); accepted: size,",
        ),
        (["Resize"], "train: Resize refuses {}: .*'size'"),
        ([{"RandomCrop": {"size": [1, 2, 3]}}], r"train: RandomCrop refuses {'size': \[1, 2, 3\]}"),
        ([{"ToDtype": {"dtype": "int8"}}], r"train\.ToDtype\.dtype: 'int8' is unknown.*accepted: float32, uint8"),
        ([{"Resize": {"size": 4, "interpolation": "linear"}}], r"train\.Resize\.interpolation: 'linear' is unknown"),
        ([{"AutoAugment": {"policy": "mnist"}}], r"policy: 'mnist' is unknown; accepted: imagenet, cifar10, svhn"),
        ([{"MixUp": {"num_classes": 3}}], r"train\.MixUp\.num_classes: not an argument to give here"),
        (["MixUp", "RGB"], "train: RGB comes after one of whole batches; put CutMix and MixUp last"),
        ([{"MixUp": {"alpha": -1}}], "train: MixUp refuses {'alpha': -1}"),
        ([{"ToDtype": {"dtype": ["float32"]}}], r"dtype: \['float32'\] is unknown"),
    ],
)
def test_wrong_lists_are_named(listed: TransformList, message: str) -> None:
    with pytest.raises(InputError, match=message):
        transforms.training(listed, 2)


class Info(DatasetInfo):
    def __init__(self, channels: int) -> None:
        self.channels, self.image_size = channels, 8


@pytest.mark.parametrize(
    ("channels", "training", "evaluation", "expected"),
    [
        (1, [], [], (1, 8)),
        (3, [], [], (3, 8)),
        (1, [{"RandomCrop": {"size": 8, "padding": 1}}, "MixUp"], [], (1, 8)),
        (3, [{"RandomResizedCrop": {"size": 6}}], [{"Resize": {"size": 7}}, {"CenterCrop": {"size": 6}}], (3, 6)),
        (1, ["RGB"], ["RGB"], (3, 8)),
        (3, [{"Grayscale": {"num_output_channels": 3}}, "ToDtype"], [], (3, 8)),
    ],
)
def test_shapes_that_the_net_gets(
    channels: int, training: TransformList, evaluation: TransformList, expected: tuple[int, int]
) -> None:
    built = transforms.training(training, 10), transforms.evaluation(evaluation)
    assert transforms.check_shapes(*built, Info(channels)) == expected


@pytest.mark.parametrize(
    ("channels", "training", "evaluation", "message"),
    [
        (1, [{"RandomCrop": {"size": 6}}], [], "become 1 x 6 x 6 in training, but 1 x 8 x 8 in evaluation"),
        (3, [], [{"Resize": {"size": 6}}], "become 3 x 8 x 8 in training, but 3 x 6 x 6 in evaluation"),
        (1, ["RGB"], [], "become 3 x 8 x 8 in training, but 1 x 8 x 8 in evaluation"),
        (1, [], [{"Resize": {"size": [4, 6]}}], r"eval: images become 4 x 6, the net takes square ones"),
        (3, ["Grayscale"], ["Grayscale"], r"eval: 3 channels become 1, .* set prepare\.channels: 1 instead"),
        (1, [{"RandomCrop": {"size": 9}}], [], r"train: ValueError: Required crop size \(9, 9\) is larger than"),
        (1, [{"RandomResize": {"min_size": 6, "max_size": 12}}], [], "train: RuntimeError: stack expects each tensor"),
        (1, [{"ToDtype": {"scale": False}}], [], "train: white becomes 255, .* give ToDtype scale: true"),
        (1, [], [{"ToDtype": {"scale": False}}], "eval: white becomes 255, .* give ToDtype scale: true"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    channels: int, training: TransformList, evaluation: TransformList, message: str
) -> None:
    built = transforms.training(training, 10), transforms.evaluation(evaluation)
    with pytest.raises(InputError, match=message):
        transforms.check_shapes(*built, Info(channels))


def test_nothing_is_changed_and_nothing_imported_for_empty_lists(project: Project) -> None:
    assert not transforms.training([], 10)
    assert isinstance(transforms.evaluation([]), nn.Identity)
    code = "import sys; from stages import train; from stages.batches.transforms import evaluation, training"
    code += "; training([], 2); evaluation([]); assert 'torchvision' not in sys.modules"
    project(sys.executable, "-c", code)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_evaluation_is_part_of_the_exported_model(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the CPU has no fast instructions for it, torchvision resizes bytes as floats, which rounds some otherwise;
    # but what it exports resizes bytes everywhere.
    monkeypatch.setattr(v2.functional._geometry, "_do_native_uint8_resize_on_cpu", lambda _interpolation: True)
    listed: TransformList = [{"Resize": {"size": 16}}, {"CenterCrop": {"size": 12}}, "RGB", "ToDtype"]
    layers = transforms.evaluation(listed), Normalise([0.5], [0.2]), nn.Flatten(), nn.Linear(3 * 12 * 12, 10)
    classifier = nn.Sequential(*layers).eval()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
    )
    mlflow.pytorch.save_model(
        classifier,
        tmp_path / "model",
        serialization_format="pt2",
        signature=signature,
        pip_requirements=["torch"],
        input_example=np.zeros((2, *shape), np.uint8),
    )
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    for n in (1, 2, 5):
        images = images_of(n, *shape)
        assert torch.allclose(loaded(images), classifier(images), atol=1e-5)

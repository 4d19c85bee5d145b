"""The classes of torchvision.transforms.v2 that params.yaml can list, for training and for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.base.errors import InputError, unknown
from stages.base.params import TransformList
from stages.base.registry import build
from stages.batches.prepared import DatasetInfo

# These draw nothing, so evaluation may use them too.
FIXED = ("CenterCrop", "ConvertImageDtype", "Grayscale", "Identity", "Pad", "RGB", "Resize", "ToDtype")
# These draw numbers, anew for each image and epoch.
# fmt: off
RANDOM = (
    "AugMix", "AutoAugment", "ColorJitter", "ElasticTransform", "GaussianBlur", "GaussianNoise", "JPEG", "RandAugment",
    "RandomAdjustSharpness", "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop",
    "RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective",
    "RandomPhotometricDistort", "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation",
    "RandomShortestSize", "RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "ScaleJitter", "TrivialAugmentWide",
)
# fmt: on

# These mix the images of a batch, and their labels into shares of the classes.
OF_BATCHES = ("CutMix", "MixUp")

# Arguments that are not torchvision's own defaults.
DEFAULTS: dict[str, dict[str, Any]] = {"ToDtype": {"dtype": "float32", "scale": True}}

# Other names. Rescale was the data loading tutorial's own class. Its ToTensor, and what has replaced that one, turn
# pictures or arrays into tensors; prepared images are tensors already.
ALIASES = {
    "PILToTensor": "Identity",
    "Rescale": "Resize",
    "ToImage": "Identity",
    "ToPureTensor": "Identity",
    "ToTensor": "Identity",
}

_BOXES = "it is for bounding boxes or key points, and prepared images have labels only"
_SEVERAL = "it makes several images of one, and each image has one score a class"
_NESTED = "it holds other transforms, and a list of names is flat"
REFUSED = {
    "ClampBoundingBoxes": _BOXES,
    "ClampKeyPoints": _BOXES,
    "Compose": "the list itself composes: write its transforms one after the other",
    "ConvertBoundingBoxFormat": _BOXES,
    "FiveCrop": _SEVERAL,
    "Lambda": "it takes code, and params.yaml holds values",
    "LinearTransformation": "its matrix has a row and a column for every pixel, more than params.yaml should hold",
    "Normalize": "images are normalised on the way to the net, with the mean and deviation of the training images",
    "RandomApply": _NESTED,
    "RandomChoice": _NESTED,
    "RandomIoUCrop": _BOXES,
    "RandomOrder": _NESTED,
    "SanitizeBoundingBoxes": _BOXES,
    "SanitizeKeyPoints": _BOXES,
    "SetClampingMode": _BOXES,
    "TenCrop": _SEVERAL,
    "ToPILImage": "the net takes tensors",
    "Transform": "it is the base of the others and changes nothing",
    "UniformTemporalSubsample": "it is for videos",
}

DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
TRIALS = 16  # draws of the training's transforms that check_shapes looks at

Transform = Callable[..., Any]


@dataclass(frozen=True)
class TrainTransforms:
    """The training's transforms: those of one image, and after them those of a batch."""

    per_image: Sequence[Transform]
    per_batch: Sequence[Transform]

    def __bool__(self) -> bool:
        return bool(self.per_image or self.per_batch)

    def __call__(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what becomes of a batch: images (n, c, h, w), and labels (n,) or shares of the classes (n, n_classes).

        `images` is uint8 (n, h, w) or (n, c, h, w), `labels` int64 (n,), both on the CPU. What is drawn for an image
        follows from its one of the n `seeds`, and what is drawn for the batch from the first; the generator that
        dropout uses is left as it was. Raises InputError for images that the transforms refuse, or make unequal.
        """
        if images.ndim == 3:
            images = images.unsqueeze(1)
        with _apart(), _refusals("train.transforms.train"):
            changed = [_through(self.per_image, image, seed) for image, seed in zip(images, seeds, strict=True)]
            images = torch.stack(changed)
            torch.default_generator.manual_seed(seeds[0] + 1)  # the first image itself has had this seed
            for transform in self.per_batch:
                images, labels = transform(images, labels)
        return images, labels


class EvalTransforms(nn.Sequential):
    """Transforms that draw nothing, for a batch: uint8 (n, h, w) or (n, c, h, w) to (n, c, h, w)."""

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim == 3:
            images = images.unsqueeze(1)
        for transform in self:
            images = transform(images)
        return images


def training(listed: TransformList, n_classes: int) -> TrainTransforms:
    """Return train.transforms.train; it is false if the list is empty.

    Raises InputError for an unknown or unfit name or argument, and for one of whole batches before one of images.
    """
    section, per_image, per_batch = "train.transforms.train", list[Transform](), list[Transform]()
    for name, arguments in _entries(section, listed):
        if name in OF_BATCHES:
            if name == "MixUp":  # it adds parts of images, which whole numbers cannot hold
                per_batch.append(_built(section, "ToDtype", {}))
            per_batch.append(_built(section, name, arguments, {"num_classes": n_classes, "labels_getter": "default"}))
        elif per_batch:
            raise InputError(f"{section}: {name} comes after one of whole batches; put {' and '.join(OF_BATCHES)} last")
        else:
            per_image.append(_built(section, name, arguments))
    return TrainTransforms(per_image, per_batch)


def evaluation(listed: TransformList) -> nn.Module:
    """Return train.transforms.eval, for a batch of uint8 (n, h, w) or (n, c, h, w); nothing for an empty list.

    torch.export can take it. Raises InputError for an unknown or unfit name or argument, and for one that draws.
    """
    section, transforms = "train.transforms.eval", list[nn.Module]()
    for name, arguments in _entries(section, listed):
        if name in RANDOM or name in OF_BATCHES:
            raise InputError(
                f"{section}: {name} draws numbers, and scores would differ from one evaluation to the next;"
                f" accepted: {', '.join(sorted({*FIXED, *ALIASES}))}"
            )
        transforms.append(_built(section, name, arguments))
    return EvalTransforms(*transforms) if transforms else nn.Identity()


def shape_of(evaluation: nn.Module, data: DatasetInfo) -> tuple[int, int]:
    """Return the channels and the side, in pixels, of the images that the net gets: the prepared ones as `evaluation`
    leaves them.

    Raises InputError if it refuses them, and if they are not square then, have fewer channels than prepared, or too
    large values.
    """
    with _refusals("train.transforms.eval"):
        evaluated = evaluation(_blank(data))
    _check_brightness("train.transforms.eval", evaluated)
    channels, height, width = evaluated.shape[1:] if evaluated.ndim == 4 else (1, *evaluated.shape[1:])
    if height != width:
        raise InputError(f"train.transforms.eval: images become {height} x {width}, the net takes square ones")
    if channels < data.channels:
        raise InputError(
            f"train.transforms.eval: {data.channels} channels become {channels}, for which the prepared set has"
            f" no mean and deviation; set prepare.channels: {channels} instead"
        )
    return channels, height


def check_shapes(augment: TrainTransforms, evaluation: nn.Module, data: DatasetInfo) -> tuple[int, int]:
    """Return `shape_of` the images. Raises InputError, as that does, also if training's become others."""
    channels, side = shape_of(evaluation, data)
    trained, _ = augment(_blank(data), torch.zeros(TRIALS, dtype=torch.int64), range(TRIALS))
    _check_brightness("train.transforms.train", trained)
    if trained.shape[1:] != (channels, side, side):
        raise InputError(
            f"train.transforms: images become {' x '.join(map(str, trained.shape[1:]))} in training, but"
            f" {channels} x {side} x {side} in evaluation; the net takes one shape"
        )
    return channels, side


def _blank(data: DatasetInfo) -> Tensor:
    """Return white images, uint8, of the shape of the prepared ones; several, since some transforms act seldom."""
    return torch.full((TRIALS, *data.image_shape), 255, dtype=torch.uint8)


def _check_brightness(section: str, white: Tensor) -> None:
    if white.is_floating_point() and white.mean() > 2:
        raise InputError(
            f"{section}: white becomes {white.mean().item():g}, but images of floats are from 0 to 1;"
            " give ToDtype scale: true"
        )


def _entries(section: str, listed: TransformList) -> list[tuple[str, dict[str, Any]]]:
    """Return names and arguments. Raises InputError for a name that is unknown or refused."""
    accepted = sorted({*FIXED, *RANDOM, *OF_BATCHES, *ALIASES})
    entries = []
    for entry in listed:
        named = {entry: dict[str, Any]()} if isinstance(entry, str) else entry
        if len(named) != 1:
            raise InputError(f"{section}: {entry} should be one name, or one name with its arguments")
        [(name, arguments)] = named.items()
        if name in REFUSED:
            raise InputError(f"{section}: {name} is not for this: {REFUSED[name]}")
        if name not in accepted:
            raise InputError(f"{section}: {name!r} is unknown{unknown(name, accepted)}")
        entries.append((name, arguments))
    return entries


def _built(section: str, name: str, arguments: dict[str, Any], derived: dict[str, Any] | None = None) -> Any:
    from torchvision.transforms import v2  # 1.5 s, which trainings without transforms need not wait for

    name = ALIASES.get(name, name)
    given = DEFAULTS.get(name, {}) | arguments
    made = {key: _value(f"{section}.{name}.{key}", key, value) for key, value in given.items()}
    return build(section, getattr(v2, name), (), derived or {}, made, where=f"{section}.{name}")


def _value(where: str, argument: str, value: Any) -> Any:
    """Return what torchvision takes for a value of params.yaml."""
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

    tables: dict[str, dict[str, Any]] = {
        "dtype": DTYPES,
        "interpolation": {mode.value: mode for mode in InterpolationMode},
        "policy": {policy.value: policy for policy in AutoAugmentPolicy},
    }
    if argument not in tables:
        return value
    if str(value) not in tables[argument]:
        raise InputError(f"{where}: {value!r} is unknown{unknown(str(value), tables[argument])}")
    return tables[argument][str(value)]


def _through(transforms: Sequence[Transform], image: Tensor, seed: int) -> Tensor:
    # Not torch.manual_seed, which would also seed the generators of GPUs.
    torch.default_generator.manual_seed(seed)
    for transform in transforms:
        image = transform(image)
    return image


@contextmanager
def _apart() -> Iterator[None]:
    """Restore the global generator, and use one thread: in a worker torch has one, and sums may depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _refusals(section: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torchvision and torch refuse images in many ways, all of which the list has led to
        raise InputError(f"{section}: {type(error).__name__}: {error}") from error

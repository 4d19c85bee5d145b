"""What happens to images on their way to the net: the transforms of training beside those of evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.base import threads
from stages.base.errors import InputError
from stages.base.params import TransformList
from stages.batches.prepared import DatasetInfo
from stages.batches.transform_table import ALIASES, FIXED, OF_BATCHES, RANDOM, built, entries

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
        follows from its own seed of the n `seeds`, and what is drawn for the batch from the first; the generator that
        dropout uses is left as it was. Raises InputError for images that the transforms refuse, or make unequal.
        """
        if images.ndim == 3:
            images = images.unsqueeze(1)
        with _isolated(), _refused_by("train.transforms.train"):
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

    Raises InputError for a name or argument that is unknown or refused, and for a transform of batches that precedes
    one of images.
    """
    section, per_image, per_batch = "train.transforms.train", list[Transform](), list[Transform]()
    for name, arguments in entries(section, listed):
        if name in OF_BATCHES:
            if name == "MixUp":  # it adds parts of images, which whole numbers cannot hold
                per_batch.append(built(section, "ToDtype", {}))
            per_batch.append(built(section, name, arguments, {"num_classes": n_classes, "labels_getter": "default"}))
        elif per_batch:
            raise InputError(f"{section}: {name} comes after one of whole batches; put {' and '.join(OF_BATCHES)} last")
        else:
            per_image.append(built(section, name, arguments))
    return TrainTransforms(per_image, per_batch)


def evaluation(listed: TransformList) -> nn.Module:
    """Return train.transforms.eval, for a batch of uint8 (n, h, w) or (n, c, h, w); nothing for an empty list.

    torch.export can take it. Raises InputError for a name or argument that is unknown or refused, and for a transform
    that draws numbers.
    """
    section, transforms = "train.transforms.eval", list[nn.Module]()
    for name, arguments in entries(section, listed):
        if name in RANDOM or name in OF_BATCHES:
            raise InputError(
                f"{section}: {name} draws numbers, and scores would differ from one evaluation to the next;"
                f" accepted: {', '.join(sorted({*FIXED, *ALIASES}))}"
            )
        transforms.append(built(section, name, arguments))
    return EvalTransforms(*transforms) if transforms else nn.Identity()


def shape_of(evaluation: nn.Module, data: DatasetInfo) -> tuple[int, int]:
    """Return the channels and the side, in pixels, of the images that the net gets: what `evaluation` makes of them.

    Raises InputError if it refuses the prepared images, or if its own are not square, have fewer channels than these,
    or values beyond 1.
    """
    with _refused_by("train.transforms.eval"):
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
    """Return `shape_of` the images. Raises InputError as that does, and if the training's get another shape."""
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
    """Return white images, uint8, shaped as the prepared ones; several, since some transforms change few images."""
    return torch.full((TRIALS, *data.image_shape), 255, dtype=torch.uint8)


def _check_brightness(section: str, white: Tensor) -> None:
    if white.is_floating_point() and white.mean() > 2:
        raise InputError(
            f"{section}: white becomes {white.mean().item():g}, but images of floats are from 0 to 1;"
            " give ToDtype scale: true"
        )


def _through(transforms: Sequence[Transform], image: Tensor, seed: int) -> Tensor:
    # Not torch.manual_seed, which would also seed the generators of GPUs.
    torch.default_generator.manual_seed(seed)
    for transform in transforms:
        image = transform(image)
    return image


@contextmanager
def _isolated() -> Iterator[None]:
    """Restore the global generator, and use one thread: in a worker torch has one, and sums may depend on it."""
    with threads.limited(1), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def _refused_by(section: str) -> Iterator[None]:
    """Raise InputError in place of whatever a transform raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torchvision and torch refuse images in many ways
        raise InputError(f"{section}: {type(error).__name__}: {error}") from error

"""The classes of torchvision.transforms.v2 that params.yaml can list, and why the others are refused."""

from typing import Any

import torch

from stages.base.errors import InputError, unknown
from stages.base.params import TransformList
from stages.base.registry import build, class_of

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


def entries(section: str, listed: TransformList) -> list[tuple[str, dict[str, Any]]]:
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


def built(section: str, name: str, arguments: dict[str, Any], derived: dict[str, Any] | None = None) -> Any:
    """Return the transform of torchvision. Raises InputError for an argument that it does not take, or refuses."""
    from torchvision.transforms import v2  # 1.5 s, which trainings without transforms need not wait for

    name = ALIASES.get(name, name)
    given = DEFAULTS.get(name, {}) | arguments
    made = {key: _value(f"{section}.{name}.{key}", key, value) for key, value in given.items()}
    return build(section, class_of(section, name, v2), (), derived or {}, made, where=f"{section}.{name}")


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

"""Weights on disk: a safetensors file that also holds what rebuilds the net. Reading one, ours or not, runs no code."""

import json
import math
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stages.base.errors import InputError, lines, listed
from stages.base.params import RANDOM, TrainParams
from stages.batches import transforms
from stages.batches.normalise import Normalise, pixel_statistics
from stages.batches.prepared import DatasetInfo
from stages.nets import vision
from stages.nets.build import build_net, head, initial_net, net_spec

# One metadata key only: safetensors writes several in a random order, and the file's bytes would change.
KEY = "repronet"

VERSION = 3  # of the description: a later one is refused

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Description:
    """What the weights are: enough to rebuild the net, to feed it, and to start its training again."""

    net: dict[str, Any]  # what build_net takes
    seed: int
    classes: list[str]
    mean: list[float]  # of each channel, on a scale of 0 to 1
    std: list[float]
    transforms: list[Any]  # of the images before normalisation, as params.yaml lists them
    epoch: int  # the one whose weights these are
    valid_accuracy: float
    valid_loss: float
    used: dict[str, str] = field(default_factory=dict)  # in the training, by dotted names; earlier versions did not say
    decoding: dict[str, Any] = field(default_factory=dict)  # of an image's file; before version 2 nothing was said
    temperature: float | None = None  # by which the scores of validation are to be divided; None: never fitted
    is_calibrated: bool = False  # whether all are divided by it
    version: int = VERSION  # of this description; the first ones did not say

    def scored(self, row: dict[str, float]) -> "Description":
        """Return what the weights are after the epoch with this row of the history."""
        return replace(
            self, epoch=int(row["epoch"]), valid_accuracy=row["valid/accuracy"], valid_loss=row["valid/loss"]
        )

    def untrained(self) -> nn.Module:
        """Return the net as its seed starts it: before the first step, if that did not start from other weights."""
        return initial_net(self.net, self.seed)

    def transform(self) -> nn.Module:
        """Return the transforms: a module that takes uint8 images, (n, h, w) or (n, 3, h, w), as they are prepared."""
        return transforms.evaluation(self.transforms)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the softmax of scores, float (n, n_classes): of each class its share."""
        if self.is_calibrated and self.temperature is not None:
            scores = scores / self.temperature
        return scores.softmax(1)

    def classifier(self, net: nn.Module) -> nn.Sequential:
        """Return `net` with what comes before it: transforms, then mean 0 and deviation 1."""
        return nn.Sequential(self.transform(), Normalise(self.mean, self.std), net)


def describe(params: TrainParams, data: DatasetInfo, channels: int, side: int, output: str) -> Description:
    """Return what the weights of a training with these params are before its first epoch: unscored.

    `channels` and `side`, in pixels, are of the images that the net gets, and `output` is what the Net should end in
    where params leave that open. Raises InputError for an unknown net.
    """
    spec = net_spec(
        **params.net.model_dump(),
        n_classes=len(data.classes),
        channels=channels,
        image_size=side,
        auto=output,
    )
    mean, std = pixel_statistics(params.normalise, data, channels)
    return Description(
        net=spec,
        seed=params.seed,
        classes=data.classes,
        mean=mean,
        std=std,
        decoding=data.decoding,
        transforms=params.transforms.eval,
        epoch=0,
        valid_accuracy=math.nan,
        valid_loss=math.nan,
        is_calibrated=params.calibrate,
    )


def save_weights(path: Path, weights: Weights, description: Description) -> None:
    """Write the file; equal arguments give equal bytes. What it has of the disk, if it is there, it keeps meanwhile."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = save(tensors, {KEY: json.dumps(asdict(description), sort_keys=True, allow_nan=False)})
    path.touch()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def load_weights(path: Path) -> tuple[nn.Module, Description]:
    """Return the net with the file's weights, on the CPU, in evaluation mode.

    Raises InputError if the file is absent, cut, not ours, or its weights do not fit the net that it describes.
    """
    weights, description = read_weights(path)
    if description is None:
        raise InputError(
            f"{path} does not say which net its weights belong to: it has no metadata {KEY!r}.\n"
            "Only files written by stages.train do; train it again with dvc repro."
        )
    return rebuild(path, weights, description), description


def read_weights(path: Path) -> tuple[Weights, Description | None]:
    """Return the tensors of a safetensors file, or of a state dict that torch.save wrote; and of ours what they are.

    Raises InputError if the file is absent or cut, or holds anything that reading would have to run.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if start[8:] != b"{":  # where safetensors keeps its header, after the header's length
        return _state_dict(path), None
    try:
        with safe_open(path, framework="pt") as safe:
            metadata = safe.metadata() or {}
            names = safe.keys()
            weights = {name: safe.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    if KEY not in metadata:
        return weights, None
    try:
        content = json.loads(metadata[KEY])
        if (later := content.get("version", VERSION)) > VERSION:
            raise InputError(f"{path} is of version {later}, and this code reads up to {VERSION}: take the later code")
        return weights, Description(**content)
    except InputError:
        raise
    except (TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} does not say what its weights are in a way that this version reads: {error}.\n"
            "If an earlier version wrote it, train it again with dvc repro."
        ) from error


def rebuild(path: Path, weights: Weights, description: Description) -> nn.Module:
    """Return the described net with the weights of the file at `path`, on the CPU, in evaluation mode.

    Raises InputError that names every tensor that does not fit, with both shapes.
    """
    try:
        net = build_net(**description.net)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say which net its weights belong to: {error}") from error
    _fill(net, path, weights)
    return net.eval()


def load_pretrained(net: nn.Module, spec: dict[str, Any], folder: Path, name: str, new_head: bool) -> None:
    """Give `net`, made by build_net(**spec), the weights in the file `name` of `folder`; where that is "none", none.

    With `new_head`, the last layer keeps its own. Where kernels of the file are for three channels and the net's for
    one, they are summed over these: a gray image gives what the three equal channels of a coloured one would.
    Raises InputError if the file leaves the folder, cannot be read, or has other tensors, each of which it names with
    both shapes.
    """
    if name == RANDOM:
        return
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no path at all, or links in a circle
        raise InputError(f"train.init_from: {name!r} cannot be a file's name: {error}") from error
    if not inside:
        raise InputError(f"train.init_from: {name!r} is outside {folder}, the one folder of weights that DVC watches")
    if not path.is_file():
        there = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        raise InputError(f"train.init_from: {name!r} is no file in {folder}; there: {listed(there) or 'none'}")
    hint = ""
    try:
        weights = vision.for_channels(net, vision.named_as_today(read_weights(path)[0]))
        hint = "" if new_head else "\nWith train.new_head: true, the last layer need not fit."
        _fill(net, path, weights, head(net, spec) if new_head else ())
    except InputError as error:
        raise InputError(f"train.init_from: {error}{hint}") from error


def _state_dict(path: Path) -> Weights:
    """Return what torch.save wrote: tensors by name, maybe under "state_dict", maybe named as DataParallel does."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about the file's age
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file can raise; torch's advice is to read it with all its code
        raise InputError(
            f"{path} is neither safetensors nor a state dict of tensors alone, as torch.save(net.state_dict(), path)"
            f" writes it ({type(error).__name__}). Nothing in it has been run."
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        keys = listed(found) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path} holds no state dict, alone or under 'state_dict', but: {keys or 'nothing'}")
    names = [str(name) for name in found]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in zip(names, found.values(), strict=True)}


def _fill(net: nn.Module, path: Path, weights: Weights, left: Collection[str] = ()) -> None:
    """Copy the weights into the net, but those `left`. Raises InputError that names what does not fit."""
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in left}
        for tensors in (net.state_dict(), weights)
    )
    if expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        rows = (
            f"{name}: the net has {expected.get(name, 'none')}, the file {found.get(name, 'none')}" for name in names
        )
        raise InputError("\n".join([f"the weights in {path} do not fit the net:", *lines(rows)]))
    # Not load_state_dict: some of torchvision's models, mnasnet for one, want more of a file there than its tensors.
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name in expected:
                tensor.copy_(weights[name])

"""Weights on disk: a safetensors file that also holds what rebuilds the Net. No pickle: reading one runs no code."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.command import InputError
from stages.nets import Net, initial
from stages.outputs import replacing

# One metadata key only: safetensors writes several in a random order, and the file's bytes would change.
KEY = "repronet"


@dataclass(frozen=True)
class Description:
    """What the weights are: enough to rebuild the Net, to feed it, and to start its training again."""

    net: dict[str, Any]  # arguments of nets.Net
    bias_start: float | None
    seed: int
    classes: list[str]
    mean: list[float]  # of each channel, on a scale of 0 to 1
    std: list[float]
    epoch: int  # the one whose weights these are
    valid_accuracy: float
    valid_loss: float

    def untrained(self) -> Net:
        """Return the Net as it was before the first step."""
        return initial(self.net, self.bias_start, self.seed)


def save(path: Path, weights: dict[str, Tensor], description: Description) -> None:
    """Write the file; equal arguments give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={KEY: json.dumps(asdict(description), sort_keys=True, allow_nan=False)})


def load(path: Path) -> tuple[Net, Description]:
    """Return the Net with the file's weights, on the CPU, in evaluation mode.

    Raises InputError if the file is absent, cut, not ours, or its weights do not fit the Net that it describes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        description = Description(**json.loads(metadata[KEY]))
        net = Net(**description.net)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} does not say which Net its weights belong to (metadata key {KEY!r}: {error!r}).\n"
            "Only files written by stages.train do; train it again with dvc repro."
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        rows = [
            f"{name}: the Net has {expected.get(name, 'none')}, the file {found.get(name, 'none')}" for name in names
        ]
        raise InputError("\n  ".join([f"the weights in {path} do not fit the Net:", *rows]))
    net.load_state_dict(weights)
    return net.eval(), description

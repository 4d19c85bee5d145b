"""Nets by the name that params.yaml's train.net gives: the Net, the course's solutions, and torchvision's models."""

from inspect import signature
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from stages.base.errors import InputError
from stages.base.params import Positive, Section, validated
from stages.nets import vision
from stages.nets.net import Net

# The Net under other names has other defaults: the two solutions of the course.
COURSE = {"widths": [10, 20], "kernel": 3, "output": "log_softmax"}
NETS: dict[str, dict[str, Any]] = {"Net": {}, "course_1": COURSE, "course_2": COURSE | {"hidden": [50], "dropout": 0.4}}


class NetArguments(Section):
    """What params.yaml may say of the Net."""

    widths: list[Positive]
    kernel: Positive
    pool: Positive
    hidden: list[Positive]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    output: Literal["auto", "relu", "logits", "log_softmax"]
    bias_start: float | None


def net_spec(
    name: str, arguments: dict[str, dict[str, Any]], n_classes: int, channels: int, image_size: int, auto: str = "relu"
) -> dict[str, Any]:
    """Return what `build_net` takes: the net's name, its own arguments, complete for the Net, and its sizes.

    `auto` is the Net's output where that is to be chosen for the loss.

    Raises InputError for unknown names, and for arguments of the Net that are unknown or out of range.
    """
    for where, given in [("train.net.name", name), *(("train.net.arguments", key) for key in arguments)]:
        if given not in NETS and given not in vision.names():
            raise InputError(f"{where}: {given!r} is unknown{vision.unknown_name(given, NETS)}")
    own = arguments.get(name, {})
    if name in NETS:
        defaults = {
            key: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for key, parameter in signature(Net).parameters.items()
            if key in NetArguments.model_fields
        }
        own = validated(NetArguments, defaults | NETS[name] | own, f"train.net.arguments.{name}").model_dump()
        own["output"] = auto if own["output"] == "auto" else own["output"]
    return {"name": name, "arguments": own, "n_classes": n_classes, "channels": channels, "image_size": image_size}


def build_net(name: str, arguments: dict[str, Any], n_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return a net with random weights, from torch's generator, on the CPU, in training mode.

    It takes float (n, channels, image_size, image_size) and gives float (n, n_classes). Raises InputError if the image
    is too small for it, or it refuses its arguments.
    """
    if name not in NETS:
        return vision.build(name, arguments, n_classes, channels, image_size)
    try:
        return Net(n_classes, channels, image_size, **arguments)
    except RuntimeError as error:  # more memory than there is
        raise InputError(f"train.net: {name} cannot be made with {arguments}: {error}") from error


def initial_net(spec: dict[str, Any], seed: int) -> nn.Module:
    """Return `build_net(**spec)` as training starts it, on the CPU, so that a seed means the same on every device."""
    torch.manual_seed(seed)
    return build_net(**spec)


def head(net: nn.Module, spec: dict[str, Any]) -> set[str]:
    """Return the names of the last layer's tensors: those of `net` whose shapes follow from the number of classes."""
    with torch.random.fork_rng(devices=[]):
        other = build_net(**spec | {"n_classes": spec["n_classes"] + 1}).state_dict()
    return {name for name, tensor in net.state_dict().items() if tensor.shape != other[name].shape}


def check_batch(net: nn.Module, spec: dict[str, Any], smallest: int) -> None:
    """Raise InputError if `net` cannot be trained on batches of `smallest` images.

    BatchNorm needs more than one value of each channel, and of a small image some models leave one pixel.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        return
    try:
        vision.forward_on_meta(net.train(), smallest, spec["channels"], spec["image_size"])
    except ValueError as error:
        raise InputError(
            f"train.batch_size: an epoch has a batch of {smallest} image{'s' * (smallest > 1)}:"
            f" {spec['name']}'s BatchNorm needs more values of each channel: {error}.\nTake another train.batch_size,"
            f" or larger images than {spec['image_size']}x{spec['image_size']}: prepare.image_size."
        ) from error


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Return those whose filters are worth a picture: all of the Net, of other models the one that sees the image."""
    if isinstance(net, Net):
        return {name: layer for name, layer in net.named_children() if isinstance(layer, nn.Conv2d)}
    return dict([vision.first_convolution(net)])

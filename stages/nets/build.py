"""Nets by the name that params.yaml's train.net gives: those of NETS in net.py, torchvision's and timm's."""

import json
from functools import partial
from inspect import Parameter, signature
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from stages.base.errors import InputError
from stages.base.params import Positive, Section, validated
from stages.base.registry import check_table
from stages.nets import timm_models, vision
from stages.nets.net import NETS, Net

SIZES = ("n_classes", "channels", "image_size")  # what every net of NETS is made with


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
    """Return what `build_net` takes: the net's name, its own arguments, complete for those of NETS, and its sizes.

    `auto` is the Net's output where that is to be chosen for the loss.

    Raises InputError for unknown names, for arguments that are unknown or out of range, and for a wrong table of nets.
    """
    for where, given in [("train.net.name", name), *(("train.net.arguments", key) for key in arguments)]:
        if given.startswith(timm_models.PREFIX):
            timm_models.check(where, given)
        elif given not in NETS and given not in vision.names():
            raise InputError(f"{where}: {given!r} is unknown{vision.unknown_name(given, NETS)}")
    own = arguments.get(name, {})
    if name in NETS:
        check_table("NETS in stages/nets/net.py", NETS)
        parameters = [known for known in signature(NETS[name]).parameters.values() if known.name not in SIZES]
        defaults = {known.name: known.default for known in parameters if known.default is not Parameter.empty}
        where = f"train.net.arguments.{name}"
        own = validated(_accepted(name, parameters), _as_json(where, defaults | own), where).model_dump()
        own |= {"output": auto} if own.get("output") == "auto" else {}
    return {"name": name, "arguments": own, "n_classes": n_classes, "channels": channels, "image_size": image_size}


def build_net(name: str, arguments: dict[str, Any], n_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return a net with random weights, from torch's generator, on the CPU, in training mode.

    It takes float (n, channels, image_size, image_size) and gives float (n, n_classes). Raises InputError if the image
    is too small for it, if it refuses its arguments, or if it does not do that.
    """
    if name.startswith(timm_models.PREFIX):
        return timm_models.build(name, arguments, n_classes, channels, image_size)
    if name not in NETS:
        return vision.build(name, arguments, n_classes, channels, image_size)
    try:
        net = NETS[name](n_classes=n_classes, channels=channels, image_size=image_size, **arguments)
    except InputError:
        raise
    except Exception as error:  # more memory than there is, or whatever a class of the user's raises
        raise InputError(
            f"train.net: {name} cannot be made with {arguments}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, Net):
        _check_scores(name, net, n_classes, torch.zeros(2, channels, image_size, image_size))
    return net


def _accepted(name: str, parameters: list[Parameter]) -> type[Section]:
    """Return the section of the arguments that a net takes; what their values may be only those of the Net say."""
    if _is_the_net(name):
        return NetArguments
    fields: dict[str, Any] = {known.name: (Any, ...) for known in parameters}
    return create_model(name, __base__=Section, **fields)


def _is_the_net(name: str) -> bool:
    return (made.func if isinstance(made := NETS[name], partial) else made) is Net


def _as_json(where: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as the weights file keeps them, to rebuild the net. Raises InputError if it cannot."""
    try:
        return {key: json.loads(json.dumps(value, allow_nan=False)) for key, value in arguments.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {arguments}, should be numbers, texts, lists and mappings: {error}") from error


def _check_scores(name: str, net: Any, n_classes: int, images: Tensor) -> None:
    """Raise InputError unless `net` is a module that makes scores, float (n, n_classes), of `images`."""
    if not isinstance(net, nn.Module):
        raise InputError(f"train.net: {name} makes {net!r}, should be a module of torch.nn")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            scores = net.eval()(images)
    except Exception as error:
        shape = tuple(images.shape)
        raise InputError(f"train.net: {name} does not take images {shape}: {type(error).__name__}: {error}") from error
    net.train()
    given = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
    if given != f"torch.float32 {(len(images), n_classes)}":
        raise InputError(f"train.net: {name} gives {given}, should be float32 {(len(images), n_classes)}")


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
    return dict(islice(vision.convolutions(net), 1))

"""torchvision's classification models by name, for any number of channels and classes."""

import re
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from stages.base.errors import InputError, unknown

# What a model needs besides the number of classes, by how its name starts, for images of this side, pixels.
# The two of the Inception family would else return the scores of side branches too while training.
NEEDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "googlenet": lambda _: {"aux_logits": False, "init_weights": True},
    "inception_v3": lambda _: {"aux_logits": False, "init_weights": True},
    "maxvit_": lambda side: {"input_size": (side, side)},
    "vit_": lambda side: {"image_size": side},
}
# Names of tensors in files of densenet and of vit that torchvision renames while it reads them.
RENAMED = {
    r"(denselayer\d+\.(?:norm|conv))\.(\d\.)": r"\1\2",
    r"\.mlp\.linear_1\.": ".mlp.0.",
    r"\.mlp\.linear_2\.": ".mlp.3.",
}
# Weights of others are for train.init_from, and a download has no bar to show.
NOT_TO_GIVE = ("weights", "progress")


def names() -> list[str]:
    """Return the names of torchvision's classification models, sorted."""
    from torchvision import models  # 1.5 s, for those who name one

    return list(models.list_models(module=models))


def unknown_name(given: str, others: Collection[str]) -> str:
    """Return what to say after "unknown": which names may be meant, and all of them, but of families the family."""
    close = get_close_matches(given, [*others, *names()], n=3, cutoff=0.7)
    families: dict[str, list[str]] = {}
    for name in names():
        start = re.match(r"(wide_)?[a-z]+", name)
        families.setdefault(start[0] if start else name, []).append(name)
    listed = [f"{start}*" if len(members) > 1 else members[0] for start, members in families.items()]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"{hint}; accepted: {', '.join(others)}, and torchvision's classification models: {', '.join(listed)}"


def build(name: str, arguments: dict[str, Any], n_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return the model with random weights, drawn on the CPU from torch's generator, in training mode.

    It takes float (n, channels, image_size, image_size) and gives float (n, n_classes). `arguments` go to
    torchvision's function of this name. Raises InputError for one that it does not take or whose value it refuses,
    and for images that are too small for the model, or of a size that it does not take.
    """
    from torchvision import models

    derived = {"num_classes": n_classes}
    for start, needs in NEEDS.items():
        if name.startswith(start):
            derived |= needs(image_size)
    builder = models.get_model_builder(name)
    for argument in arguments:
        if argument in derived or argument in NOT_TO_GIVE:
            raise InputError(f"train.net.arguments.{name}.{argument}: not an argument to give here")
    try:
        net: nn.Module = builder(weights=None, **derived, **arguments)
        _adapt(net, channels)
        passed = forward_on_meta(net.eval(), 2, channels, image_size)
    except Exception as error:  # torchvision checks arguments and sizes in many ways, and all come from the user
        if wrong := _wrong_argument(name, arguments, derived, image_size):
            raise InputError(f"{wrong}: {type(error).__name__}: {error}") from error
        raise does_not_take(name, image_size, error) from error
    if passed.shape != (2, n_classes):
        raise InputError(f"train.net: {name} with {arguments} gives {tuple(passed.shape)}, not (2, {n_classes})")
    return net.train()


def does_not_take(name: str, image_size: int, error: Exception) -> InputError:
    """Return what to raise where a model refuses the images' size."""
    return InputError(
        f"train.net: {name} does not take images of {image_size}x{image_size} pixels: {type(error).__name__}:"
        f" {str(error).strip()}\nTry another prepare.image_size, such as 224, or a Resize in train.transforms."
    )


def forward_on_meta(net: nn.Module, n: int, channels: int, image_size: int) -> Tensor:
    """Return what `net` gives for `n` images, without data: only shapes are computed, and nothing is changed."""
    tensors = {name: tensor.to("meta") for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    with torch.no_grad():
        images = torch.empty(n, channels, image_size, image_size, device="meta")
        passed: Tensor = torch.func.functional_call(net, tensors, (images,))
    return passed


def convolutions(net: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield each convolution and its name. The first sees the image; all of torchvision's models have one."""
    return ((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))


def named_as_today(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that torchvision publishes under the names that its models have now.

    The side branches of googlenet and inception_v3, which are not built here, are left out.
    """
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith(("aux1.", "aux2.", "AuxLogits.")):
            for old, new in RENAMED.items():
                name = re.sub(old, new, name)
            renamed[name] = tensor
    return renamed


def for_channels(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights, the kernels for three channels summed over these where the net's are for one."""
    summed = {}
    for name, layer in convolutions(net):
        kernels, own = weights.get(f"{name}.weight"), layer.weight.shape
        if kernels is not None and kernels.ndim == 4 and (kernels.shape[1], own[1]) == (3, 1):
            summed[f"{name}.weight"] = kernels.sum(1, keepdim=True)
    return weights | summed


def _adapt(net: nn.Module, channels: int) -> None:
    """Let the first convolution take `channels` instead of three, with the weights that were drawn for those."""
    _, first = next(convolutions(net))
    weight = first.weight.detach()[:, torch.arange(channels) % first.in_channels]
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _wrong_argument(name: str, arguments: dict[str, Any], derived: dict[str, Any], image_size: int) -> str:
    """Return which of the arguments is not known, or that one is refused; "" if the model fails without them too."""
    from torchvision import models

    builder = models.get_model_builder(name)
    try:
        plain = builder(weights=None, **derived)
        forward_on_meta(plain.eval(), 2, 3, image_size)
    except Exception:  # of which there was one before
        return ""
    # The function hands them on to the class, which has no defaults for those that the function gives itself.
    known = {**signature(builder).parameters, **signature(type(plain)).parameters}
    accepted = [
        key
        for key, parameter in known.items()
        if parameter.default is not Parameter.empty and key not in derived and key not in NOT_TO_GIVE
    ]
    for argument in arguments:
        if argument not in accepted:
            return f"train.net.arguments.{name}.{argument}: not an argument to give here{unknown(argument, accepted)}"
    return f"train.net.arguments.{name}: {name} refuses {arguments}"

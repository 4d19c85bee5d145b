"""timm's models by name, "timm/resnet18", for any number of channels and classes: an optional extra."""

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from torch import nn

from stages.base.errors import InputError
from stages.nets.vision import does_not_take, forward_on_meta

PREFIX = "timm/"
# Weights are for train.init_from, which reads them without running what they hold; and no other model is to be had so.
NOT_TO_GIVE = {
    "cache_dir", "checkpoint_path", "exportable", "features_only", "img_size", "in_chans", "num_classes", "no_jit",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip


def check(where: str, name: str) -> None:
    """Raise InputError, about the name at `where` in params.yaml, unless timm is installed and has such a model."""
    if find_spec("timm") is None:
        raise InputError(
            f"{where}: {name!r} needs the extra timm: pip install -c constraints.txt -e '.[timm]'; else torchvision's"
            f" models have no prefix: {name.removeprefix(PREFIX)}"
        )
    import timm  # some seconds, for those who name one

    models = timm.list_models()
    if name.removeprefix(PREFIX) not in models:
        close = [f"{PREFIX}{one}" for one in get_close_matches(name.removeprefix(PREFIX), models, n=3, cutoff=0.7)]
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise InputError(f"{where}: {name!r} is unknown{hint}; accepted: {PREFIX} and one of timm.list_models()")


def build(name: str, arguments: dict[str, Any], n_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return the model with random weights, drawn on the CPU from torch's generator, in training mode.

    It takes float (n, channels, image_size, image_size) and gives float (n, n_classes). `arguments` go to the model's
    function. Raises InputError for one that is refused, and for images of a size that the model does not take.
    """
    check("train.net.name", name)
    import timm

    for argument in arguments:
        if argument in NOT_TO_GIVE:
            raise InputError(f"train.net.arguments.{name}.{argument}: not an argument to give here")
    own, sizes = name.removeprefix(PREFIX), {"num_classes": n_classes, "in_chans": channels}
    published = timm.get_pretrained_cfg(own, allow_unregistered=True)
    given: dict[str, Any] = arguments | sizes
    given |= {"img_size": image_size} if published and published.fixed_input_size else {}
    try:
        net: nn.Module = timm.create_model(own, **given)
        shape = forward_on_meta(net.eval(), 2, channels, image_size).shape
    except Exception as error:  # timm checks arguments and sizes in many ways, and all come from the user
        if arguments:
            build(name, {}, n_classes, channels, image_size)  # which raises if it is not the arguments
            raise InputError(f"train.net.arguments.{name}: {name} refuses {arguments}: {error}") from error
        raise does_not_take(name, image_size, error) from error
    if shape != (2, n_classes):
        raise InputError(f"train.net: {name} gives {tuple(shape)}, not (2, {n_classes})")
    return net.train()

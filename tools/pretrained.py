"""Fetches the weights that torchvision or timm publish for a model into data/weights/, for train.init_from.

    python -m tools.pretrained resnet18
    python -m tools.pretrained timm/resnet18

says then how to start from them. Those of torchvision are checked against the digest in their name; those of timm come
from its place on the Hugging Face Hub, or where HF_ENDPOINT says. `--url` takes another place. They have to fit the
model, but for its last layer. Nothing in a file is run: only tensors are read.
"""

import os
import re
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlparse

from stages.base import cli
from stages.base.errors import InputError
from stages.base.params import WEIGHTS
from stages.base.text import say, warn
from stages.batches.normalise import STATISTICS
from stages.nets import timm_models, vision
from stages.nets.build import build_net, net_spec
from stages.nets.weights import load_pretrained, read_weights


@dataclass(frozen=True)
class Published:
    """What a model's publisher says of its weights."""

    url: str
    file: str  # the name that it gets in data/weights/
    side: int  # of the images that they were trained with, pixels
    mean: Sequence[float]  # what pixels, on a scale of 0 to 1, are normalised with
    std: Sequence[float]


def main() -> None:
    parser = cli.parser("tools.pretrained", __doc__)
    parser.add_argument("model", metavar="MODEL", help="as train.net.name has it, e.g. resnet18 or timm/resnet18")
    parser.add_argument("--url", help="of the file, where it is not to come from the model's publisher")
    arguments = parser.parse_args()
    found = published(arguments.model)
    file = fetch(
        arguments.model,
        found if arguments.url is None else replace(found, url=arguments.url, file=named(arguments.url)),
    )
    named_so = next((name for name, known in STATISTICS.items() if known == (found.mean, found.std)), None)
    overrides = {
        "prepare.image_size": str(found.side),
        "train.net.name": arguments.model,
        "train.init_from": str(file.relative_to(WEIGHTS)),
        "train.new_head": "true",
    } | ({"train.normalise": named_so} if named_so else {})
    say(
        f"{file}: {sum(tensor.numel() for tensor in read_weights(file)[0].values()):,} numbers. To start from them:\n"
        f"  dvc add {file} && git add {WEIGHTS} && git commit -m 'weights of {arguments.model}'\n"
        f"  dvc exp run {' '.join(f'-S {name}={value}' for name, value in overrides.items())}"
    )
    if named_so is None:
        warn(f"warning: no train.normalise has their mean {[*found.mean]} and deviation {[*found.std]}")


def published(model: str) -> Published:
    """Return what is published for a model. Raises InputError for an unknown one, and for one without weights."""
    net_spec(model, {}, n_classes=2, channels=3, image_size=224)
    found = _of_timm(model) if model.startswith(timm_models.PREFIX) else _of_torchvision(model)
    if found is None:
        raise InputError(f"MODEL: {model!r} has no published weights")
    return found


def named(url: str) -> str:
    """Return the name of the file at a URL."""
    return Path(urlparse(url).path).name


def fetch(model: str, found: Published) -> Path:
    """Return the file of the model's weights in data/weights/, which is fetched unless it is there.

    Raises InputError for a file that cannot be had, or that does not fit the model but for its last layer.
    """
    file = WEIGHTS / found.file
    if file.exists():
        say(f"{file} is there already")
        return file
    with TemporaryDirectory(dir=WEIGHTS, prefix=".") as folder:
        partial = Path(folder) / found.file
        _download(found.url, partial)
        spec = net_spec(model, {}, n_classes=2, channels=3, image_size=found.side)
        load_pretrained(build_net(**spec), spec, Path(folder), found.file, new_head=True)
        partial.rename(file)
    return file


def _of_torchvision(model: str) -> Published | None:
    from torchvision import models

    if model not in vision.names() or not len(models.get_model_weights(model)):
        return None
    best = models.get_model_weights(model).DEFAULT
    transforms = best.transforms()
    half = model in ("googlenet", "inception_v3")  # whose weights want another scale than torchvision says of them
    mean, std = STATISTICS["half"] if half else (tuple(transforms.mean), tuple(transforms.std))
    return Published(best.url, named(best.url), int(transforms.crop_size[0]), mean, std)


def _of_timm(model: str) -> Published | None:
    import timm

    name = model.removeprefix(timm_models.PREFIX)
    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not found or not found.hf_hub_id:
        return None
    file = found.hf_hub_filename or "model.safetensors"
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    own = f"timm-{name}{Path(file).suffix}"
    url, side = f"{hub}/{found.hf_hub_id}/resolve/main/{file}", int(found.input_size[-1])
    return Published(url, own, side, tuple(found.mean), tuple(found.std))


def _download(url: str, file: Path) -> None:
    """Fetch a file, with a bar; torchvision's has its digest's beginning in its name, after a hyphen."""
    import torch

    digest = re.search(r"-([0-9a-f]{8,64})$", file.stem)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest and digest[1], progress=True)
    except (urllib.error.URLError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{url} cannot be fetched: {error}\nPut the file into {WEIGHTS}/ by hand, or say where else it is: --url"
        ) from error


if __name__ == "__main__":
    cli.run(main)

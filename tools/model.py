"""The model that a command names, applied as evaluate applies it, to pixels and to files.

It is made of a weights file alone, which holds no code.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.base.errors import InputError
from stages.base.params import TrainParams, load_params
from stages.base.text import warn
from stages.batches.prepared import Split
from stages.nets.prediction import predict
from stages.nets.weights import load_weights
from stages.sources.decoding import Facts, decode, file_reader
from stages.sources.images import ImageSpec
from stages.sources.rejections import Rejection
from stages.training import determinism
from tools.runs import EvaluatedRun, Runs

BLOCK, BLOCK_IMAGES = 64 << 20, 1 << 14  # bytes, and images at most, that are decoded before they are scored


class Found(NamedTuple):
    """The weights file that a name stands for."""

    file: Path
    called: str
    remark: str  # which others could be meant
    run: EvaluatedRun | None  # that it is of


def weights_of(name: str, folder: Path) -> Found:
    """Return the weights file of a model.

    `name` is a file, or stands for a run: its id or name, best, or MODEL@ALIAS of the registry; a run's file is copied
    into `folder`. Raises InputError if there is none.
    """
    if Path(name).is_file():
        return Found(Path(name), name, "", None)
    if os.sep in name or name.endswith((".safetensors", ".pt", ".pth")):
        raise InputError(f"MODEL: {name!r} is no file")
    runs = Runs()
    run = runs.meant(name)
    called = f"{run.name} ({run.metrics['test/accuracy']:.4f} test accuracy)"
    return Found(runs.weights(run, folder), called, run.remark, run)


def opened(name: str) -> "Model":
    """Return the model that a command names as `weights_of` takes it; which others could be meant is said.

    It computes as params.yaml has it: device, threads and level of determinism. Raises InputError if there is none.
    """
    with TemporaryDirectory() as folder:
        found = weights_of(name, Path(folder))
        model = Model(found.file, load_params().train, found.called, found.run)
    if found.remark:
        warn(found.remark)
    return model


class Model:
    """A classifier of images; threads may share it."""

    def __init__(self, weights: Path, params: TrainParams, called: str, run: EvaluatedRun | None = None) -> None:
        """Raises InputError if the file cannot be read, or its weights do not fit the net that it describes.

        Device, threads and level of determinism are those of `params`, as for evaluate. Messages have it `called` so;
        `run` is what it is of, if that is known.
        """
        net, self._description = load_weights(weights)
        self.classes = self._description.classes
        self._device = determinism.set_up(params.device, params.threads, params.determinism)
        self._classifier = self._description.classifier(net).eval().to(self._device)
        self._alone = Lock()
        self.called, self.run = called, run

    @property
    def spec(self) -> ImageSpec:
        """What an image is made into. Raises InputError for weights whose file does not say it."""
        try:
            return ImageSpec(**self._description.decoding)
        except TypeError as error:
            raise InputError(
                f"{self.called}: its weights, of code of another time, do not say how an image is read; train it again"
            ) from error

    def scores(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the scores, float (n, n_classes), on the CPU.

        Images are as they are prepared, (n, h, w) or (n, 3, h, w). Raises InputError for other shapes.
        """
        self._check_shape(images)
        labels = torch.zeros(len(images), dtype=torch.int64, device=self._device)
        with self._alone:
            return predict(self._classifier, Split(images, labels, rows=torch.arange(len(images)))).cpu()

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return how probable each class is by scores, float (n, n_classes), as evaluate writes it."""
        return self._description.probabilities(scores)

    def room(self, n_images: int) -> npt.NDArray[np.uint8]:
        """Return the array for `decode`, zeros: for as many images as are decoded at once, `n_images` at most."""
        shape = self.spec.shape
        n_images = min(n_images, BLOCK_IMAGES, max(1, BLOCK // prod(shape)))
        # Of memory that the processes share which decode.
        return np.frombuffer(mmap.mmap(-1, n_images * prod(shape)), np.uint8).reshape(n_images, *shape)

    def decode(
        self, room: npt.NDArray[np.uint8], files: Sequence[str], usable: Iterable[int], **options: Any
    ) -> tuple[Facts, dict[int, Rejection]]:
        """Put the images in the `usable` ones of the files, by their numbers, to their places in `room`.

        Takes the options of sources.decoding.decode, and returns what that does.
        """
        spec, rows = self.spec, np.array([*usable], np.int64)
        return decode(room, file_reader(files, spec), rows, spec.max_pixels, **options)

    def _check_shape(self, images: npt.NDArray[np.uint8]) -> None:
        net, transforms = self._description.net, self._description.transforms
        wanted = (net["channels"], net["image_size"], net["image_size"])
        try:
            seen = tuple(self._classifier[0](torch.from_numpy(images[:1])).shape[1:])
        except Exception:  # torchvision's transforms refuse shapes in many ways
            seen = ()
        if ((1, *seen) if len(seen) == 2 else seen) != wanted:
            after = f" after its transforms {transforms}" if transforms else ""
            takes = f"(n, {', '.join(map(str, wanted[1:] if wanted[0] == 1 else wanted))})"
            raise InputError(f"images of shape {images.shape}; the model takes {takes}{after}")

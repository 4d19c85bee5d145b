"""Several processes that train one net together: each computes its part of every batch, and all have the same weights.

The sums go through torch.distributed. DistributedDataParallel would do with parts of one size: here a batch may not
divide, the last one may have fewer images than there are processes, what learns may change from one epoch to the next,
and LBFGS computes the gradient several times a step.
"""

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from stages.base.errors import InputError, listed
from stages.base.params import TrainParams, flattened
from stages.base.processes import ignore_signals
from stages.training.finetuning import ALL_BUT_HEAD
from stages.training.losses import LOSSES
from stages.training.metrics import Step

# Arguments that make torch's mean over a batch one over another number than that of its images.
OF_BATCHES = ("weight", "ignore_index")


@dataclass(frozen=True)
class Group:
    """The processes of a training, of which this one is number `rank` of `size`, from 0. One alone changes nothing."""

    rank: int = 0
    size: int = 1
    gpu: int = 0  # its number among those that this process sees

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: each has a GPU of its own. Raises InputError if there are too few."""
        if self.is_alone or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise InputError(f"train.processes: {self.size}, but on {device.type} there is one; accepted: cuda, cpu")
        if self.gpu >= torch.cuda.device_count():
            raise InputError(
                f"train.processes: {self.size}, one a GPU, but process {self.rank} is to have GPU {self.gpu}"
                f" (LOCAL_RANK) of {socket.gethostname()} and sees {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(self.gpu)
        return torch.device("cuda", self.gpu)

    def part(self, indices: Tensor, batch_size: int) -> Tensor:
        """Return this process's part of n images in batches of this size, one after the other: some of each batch."""
        if self.is_alone:
            return indices
        return torch.cat([batch[self.rank :: self.size] for batch in indices.split(batch_size)])

    def share(self, n_images: int) -> int:
        """Return how many of a batch of so many images this process has."""
        return len(range(self.rank, n_images, self.size))

    def batches(self, images: Tensor, targets: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield of a step's images those of each batch, of this size in all processes together; none of no images."""
        if len(images):
            own = self.share(batch_size)
            yield from zip(images.split(own), targets.split(own), strict=True)

    def draw(self, seed: int, step: int) -> None:
        """Let what is drawn in a step, such as dropout, follow from the seed, the step and the process."""
        if not self.is_alone:
            torch.manual_seed((seed * 1_000_003 + step) * 4099 + self.rank)

    def combined(self, parameters: Iterable[nn.Parameter], own: Step | None) -> Step:
        """Return what a step has shown in all processes, and make the gradients those of all its images.

        Each process's are means over its own images; one without any gives None.
        """
        if self.is_alone:
            assert own is not None
            return own
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learning:
            if parameter.grad is None:  # of no image, or of a part of the net that none goes through
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        of = gradients[0].new_tensor  # a number, to be sent with them
        own = own or Step(of(0.0), of(0), 0)
        means = torch.cat([*(gradient.reshape(-1) for gradient in gradients), own.loss.to(gradients[0])[None]])
        sums = torch.cat([means * own.images, own.hits.to(means)[None], of(own.images)[None]])
        with awaiting_others():
            distributed.all_reduce(sums)  # one for all: each costs a wait for the slowest process
        hits, images = sums[-2], sums[-1]
        *averaged, loss = (sums[:-2] / images).split([*(gradient.numel() for gradient in gradients), 1])
        for gradient, average in zip(gradients, averaged, strict=True):
            gradient.copy_(average.view_as(gradient))
        return Step(loss[0], hits, images)

    def divides(self, n: int) -> bool:
        """Return whether n images are computed in parts: few are by each process, so that none is without."""
        return self.size > 1 and n >= self.size

    def gathered(self, own: Tensor, n: int) -> Tensor:
        """Return the rows of n images, (n, …), of which each process has those of its part, if they are divided."""
        if not self.divides(n):
            return own
        most = -(-n // self.size)
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with awaiting_others():
            distributed.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[:n]

    def agreed(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the figures of the first process: another CPU's may differ in last bits, and decide otherwise."""
        if self.is_alone:
            return figures
        return dict(json.loads(self.sent(json.dumps(figures).encode())))

    def sent(self, content: bytes) -> bytes:
        """Return what the first process has, to one of several."""
        size = torch.tensor([len(content)])
        with awaiting_others():
            distributed.broadcast(size, 0)
            data = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0 and content:
                data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            distributed.broadcast(data, 0)
        return data.numpy().tobytes()

    def check_same(self, origin: Mapping[str, Any]) -> None:
        """Raise InputError, in all processes, if what determines the result is not the same in all.

        Beside GPUs the CPUs may be of different models.
        """
        if self.is_alone:
            return
        own = json.dumps({"host": socket.gethostname(), "origin": flattened(dict(origin))})
        first, *others = map(json.loads, self._of_all(own))
        for rank, other in enumerate(others, start=1):
            ours, theirs = first["origin"], other["origin"]
            names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
            if different := names - ({"cpu"} if ours["device"] != "cpu" else set()):
                raise InputError(
                    f"process {rank} of the training, on {other['host']}, has other than the first:"
                    f" {listed(sorted(different))}"
                )

    def _of_all(self, text: str) -> list[str]:
        """Return the text that each process gives."""
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with awaiting_others():
            distributed.all_gather(sizes, torch.tensor([len(content)]))
            most = int(max(sizes))
            texts = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
            distributed.all_gather(texts, F.pad(content, (0, most - len(content))))
        return [one[: int(size)].numpy().tobytes().decode() for one, size in zip(texts, sizes, strict=True)]


ALONE = Group()


class Lost(KeyboardInterrupt):
    """Another process of the training has ended, or does not answer: this one ends as if it were interrupted."""


@contextmanager
def awaiting_others() -> Iterator[None]:
    """Raise Lost if the others do not do their part. On GPUs NCCL ends this process itself then."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        ignore_signals()  # the launcher ends this process, too, and would disturb its orderly end
        raise Lost(str(error).rsplit("] ", 1)[-1].split(". ")[0]) from error


def check(params: TrainParams) -> None:
    """Raise InputError for params whose result would not be that of one process."""
    if params.processes == 1:
        return
    if params.batch_size < params.processes:
        raise InputError(
            f"train.batch_size: {params.batch_size}, should be train.processes: {params.processes} or more"
        )
    given = params.loss.arguments.get(params.loss.name, {})
    if LOSSES[params.loss.name].target.is_one_class:
        for name in OF_BATCHES:
            if given.get(name) is not None:
                raise InputError(
                    f"train.loss.arguments.{params.loss.name}.{name}: {given[name]!r} makes the loss a mean"
                    " over another number than a batch's images, which no process knows by itself; accepted with"
                    " train.processes above 1: train.balance: loss"
                )


def with_common_norms(net: nn.Module, params: TrainParams, device: torch.device, smallest: int) -> nn.Module:
    """Return the net whose batch norms, if they learn, have the statistics of a batch and not of a process's part.

    Raises InputError where torch has none such: on CPUs, for batches of which some processes have no image, and for a
    class derived from torch's; `smallest` is the number of images in the smallest batch.
    """
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if params.processes == 1 or not norms or params.freeze == ALL_BUT_HEAD:
        return net
    what = f"train.processes: {params.processes}, but {params.net.name} has batch norms"
    if device.type != "cuda":
        raise InputError(
            f"{what}, which torch computes over several processes on GPUs alone; accepted on a CPU: train.processes: 1,"
            f" a net without, or train.freeze: {ALL_BUT_HEAD}"
        )
    if smallest < params.processes:
        raise InputError(
            f"{what}, for which each process needs an image, and an epoch has a batch of {smallest}; take another"
            " train.batch_size"
        )
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if params.net.name.startswith("timm/"):
        from timm.layers.norm_act import convert_sync_batchnorm as convert  # of norms with an activation, too
    elif own := [type(layer).__name__ for layer in norms if type(layer).__module__ != nn.BatchNorm2d.__module__]:
        raise InputError(f"{what} of the class {own[0]}, which torch would replace by its own; accepted: torch's")
    return convert(net)

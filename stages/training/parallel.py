"""Several processes that train one net together: each computes its part of every batch, and all have the same weights.

The sums go through torch.distributed. DistributedDataParallel would do with parts of one size: here a batch may not
divide, the last one may have fewer images than there are processes, what learns may change from one epoch to the next,
and LBFGS computes the gradient several times a step.
"""

import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stages.base.errors import InputError, listed
from stages.base.params import TrainParams, flattened
from stages.base.processes import ignore_signals
from stages.training.losses import LOSSES
from stages.training.metrics import Step

# Arguments that make torch's mean over a batch one over another number than that of its images.
OF_BATCHES = ("weight", "ignore_index")


@dataclass(frozen=True)
class Group:
    """The processes of a training, of which this one is number `rank` of `size`, from 0. One alone changes nothing."""

    rank: int = 0
    size: int = 1
    device_number: int = 0  # of this machine's GPUs

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: each has a GPU of its own. Raises InputError if there are too few."""
        if self.is_alone or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise InputError(f"train.processes: {self.size}, but on {device.type} there is one; accepted: cuda, cpu")
        if self.device_number >= torch.cuda.device_count():
            raise InputError(
                f"train.processes: {self.size}, one a GPU, but this machine has {torch.cuda.device_count()} of them"
            )
        torch.cuda.set_device(self.device_number)
        return torch.device("cuda", self.device_number)

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
        with _others():
            distributed.all_reduce(sums)  # one for all: each costs a wait for the slowest process
        hits, images = sums[-2], sums[-1]
        *averaged, loss = (sums[:-2] / images).split([*(gradient.numel() for gradient in gradients), 1])
        for gradient, average in zip(gradients, averaged, strict=True):
            gradient.copy_(average.view_as(gradient))
        return Step(loss[0], hits, images)

    def gathered(self, own: Tensor, n: int) -> Tensor:
        """Return the rows of n images, (n, …), of which each process has those of its part, in batches of n."""
        if self.is_alone:
            return own
        most = -(-n // self.size)
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _others():
            distributed.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[:n]

    def agreed(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the figures of the first process: another CPU's may differ in last bits, and decide otherwise."""
        if self.is_alone:
            return figures
        return dict(json.loads(self.sent(json.dumps(figures).encode())))

    def sent(self, content: bytes) -> bytes:
        """Return what the first process has."""
        if self.is_alone:
            return content
        device = _device()
        size = torch.tensor([len(content)], device=device)
        with _others():
            distributed.broadcast(size, 0)
            data = torch.zeros(int(size), dtype=torch.uint8, device=device)
            if self.rank == 0 and content:
                data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            distributed.broadcast(data, 0)
        return data.cpu().numpy().tobytes()

    def check_same(self, origin: Mapping[str, Any]) -> None:
        """Raise InputError if what determines the result is not the first process's, but for the CPU's model."""
        ours = flattened(json.loads(json.dumps(origin)))
        theirs = flattened(json.loads(self.sent(json.dumps(origin).encode())))
        names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if names := [name for name in names if name != "cpu"]:
            raise InputError(
                f"process {self.rank} of the training, on {socket.gethostname()}, has other than the first:"
                f" {listed(names)}"
            )


ALONE = Group()


class Lost(KeyboardInterrupt):
    """Another process of the training has ended, or does not answer: this one ends as if it were interrupted."""


@contextmanager
def _others() -> Iterator[None]:
    """Raise Lost if the others do not do their part."""
    try:
        yield
    except RuntimeError as error:
        ignore_signals()  # the launcher ends this process, too, and would disturb its orderly end
        raise Lost(str(error).rsplit("] ", 1)[-1].split(". ")[0]) from error


def _device() -> torch.device:
    """Return where the processes can send each other tensors from."""
    on_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


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

    Raises InputError where torch has none such: on CPUs, and for batches of which some processes have no image;
    `smallest` is the number of images in the smallest.
    """
    learn = params.freeze != "all_but_head"
    if params.processes == 1 or not learn or not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        return net
    if smallest < params.processes:
        raise InputError(
            f"train.processes: {params.processes}, but an epoch has a batch of {smallest} images, and"
            f" {params.net.name} has batch norms, for which each process needs one; take another train.batch_size"
        )
    if device.type != "cuda":
        raise InputError(
            f"train.processes: {params.processes}, but {params.net.name} has batch norms, which torch computes over"
            " several processes on GPUs alone; accepted on a CPU: train.processes: 1, a net without, or"
            " train.freeze: all_but_head"
        )
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return synchronised

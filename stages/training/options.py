"""What a training can do besides, each a no-op object when it is off."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.base.instructions import PORTABLE, Level, has_avx2, lacks_bfloat16
from stages.base.text import say, warn

READ_STEPS = 16  # on a GPU


def precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a forward pass: torch.autocast for "bfloat16".

    It chooses which operations run in bfloat16, and which are too inexact in it and stay in float32.
    """
    return nullcontext if name == "float32" else lambda: torch.autocast(device.type, torch.bfloat16)


def warn_if_slower(name: str, device: torch.device, level: Level, is_compiled: bool) -> None:
    """Say why a forward pass in bfloat16 takes longer than in float32, where it does: on most CPUs.

    `is_compiled` is whether the net's layers are compiled for float32, as the Net's are.
    """
    if name == "float32" or device.type != "cpu":
        return
    if level == PORTABLE and has_avx2():
        reason = "train.determinism: portable keeps to instructions that know no bfloat16"
    elif lacks_bfloat16():
        reason = "this CPU has no instructions for it"
    elif is_compiled:
        reason = "this net's layers are compiled for float32"
    else:
        return
    warn(f"warning: train.precision: bfloat16 is slower than float32 here: {reason}")


def say_overfitting(images: int, row: Mapping[str, float]) -> None:
    """Say by the history's last row how well the few training images are learnt, and warn unless all are right."""
    came = f"the same {images} training images over and over: loss {row['train/loss']:.4g},"
    came += f" {row['train/accuracy']:.1%} right"
    if row["train/accuracy"] == 1:
        say(came)
    else:
        warn(f"warning: {came}, should be all, dropout, transforms and few epochs aside. Look at train.optimizer.lr")


def steps_between_reads(device: torch.device, optimizer: optim.Optimizer) -> int:
    """Return after how many steps the losses are looked at: who reads one waits for all that a GPU has to do.

    LBFGS reads them itself.
    """
    return 1 if device.type == "cpu" or isinstance(optimizer, optim.LBFGS) else READ_STEPS


def clipping(net: nn.Module, norm: float | None) -> Callable[[], object]:
    """Return what scales the net's gradient down to the L2 norm `norm` where it is larger; None: nothing does.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    return (lambda: None) if norm is None else lambda: nn.utils.clip_grad_norm_(net.parameters(), norm)


Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Ema:
    """A net whose weights follow those of the one that is trained: the one to evaluate and to keep."""

    net: nn.Module
    update: Callable[[], None]  # after every step
    averaged: nn.Module  # the net, with what its average goes on from


def ema(net: nn.Module, decay: float | None) -> Ema:
    """Return the exponential moving average of the net's weights and buffers; None: the net itself.

    After each step the average is decay * average + (1 - decay) * weights: Polyak and Juditsky, "Acceleration of
    stochastic approximation by averaging", 1992, with weights that fade.
    """
    if decay is None:
        return Ema(net, lambda: None, net)
    follow = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(ours: Tensors, theirs: Tensors, n: Tensor | int) -> None:
        if ours[0].is_floating_point():
            follow(ours, theirs, n)
        else:  # torch would average whole numbers, too, such as the table of positions of a Swin transformer
            torch._foreach_copy_(ours, theirs)

    averaged = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    return Ema(averaged.module, lambda: averaged.update_parameters(net), averaged)

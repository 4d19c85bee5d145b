"""Makes equal inputs give equal bits, as far as `train.determinism` asks: thread count, kernels, instructions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.base import instructions
from stages.base.errors import InputError
from stages.base.instructions import Level
from stages.base.processes import Threads, thread_count
from stages.base.text import warn


def set_up(device: str, threads: Threads, level: Level) -> torch.device:
    """Fix what changes float results besides the seed, and return the device. Call it before using torch.

    `device` is auto, cpu, cuda or mps. `level` is portable (equal bits on every x86-64 CPU with AVX2; elsewhere it
    warns that it is machine), machine (on this kind of machine) or off (the fastest kernels, whatever their bits).
    Raises InputError if this machine lacks the device, or torch was imported for another level.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, here in available.items() if here)
    if not available[device]:
        raise InputError(
            f"train.device: {device!r} is not available here;"
            f" accepted: auto, {', '.join(name for name, here in available.items() if here)}"
        )
    if not instructions.check(level, device == "cpu") and level == instructions.PORTABLE:
        warn(f"train.determinism: portable is for x86-64 CPUs with AVX2; on this {device} it acts as machine")
    deterministic = level != "off"
    torch.set_num_threads(thread_count(threads))
    # cuBLAS takes a fixed workspace from the environment; it must be there before CUDA starts.
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # This sets what use_deterministic_algorithms does, which imports for 1 s.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # Filling fresh memory guards against reads of uninitialised values, which our code never does; it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    # float32 is float32: by default convolutions on newer GPUs would round their inputs to 10 bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not deterministic
    return torch.device(device)


@contextmanager
def required(what: str) -> Iterator[None]:
    """Raise InputError where `what` needs an operation that is not deterministic, as some are on GPUs."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise InputError(
            f"{what} cannot be trained with equal bits on this device; train.device: cpu. {error}"
        ) from error

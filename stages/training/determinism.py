"""Makes equal inputs give equal bits: seeds, thread count, deterministic kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.base.errors import InputError


def set_up(device: str, threads: int) -> torch.device:
    """Fix everything that changes float results besides the seed, and return the device. Call it before using torch.

    `device` is auto, cpu, cuda or mps. Raises InputError if this machine lacks it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, here in available.items() if here)
    if not available[device]:
        raise InputError(
            f"train.device: {device!r} is not available here;"
            f" accepted: auto, {', '.join(name for name, here in available.items() if here)}"
        )
    torch.set_num_threads(threads)
    # cuBLAS takes a fixed workspace from the environment; it must be there before CUDA starts.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_deterministic_debug_mode("error")  # sets what use_deterministic_algorithms does, which imports for 1 s
    # Filling fresh memory guards against reads of uninitialised values, which our code never does; it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # float32 is float32: by default convolutions on newer GPUs would round their inputs to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
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

"""How many threads torch computes with, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def limited(most: int) -> Iterator[None]:
    """Let torch have `most` threads at most."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, most))
    try:
        yield
    finally:
        torch.set_num_threads(threads)

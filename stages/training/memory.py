"""What becomes of memory that torch frees on the CPU."""

import ctypes
from contextlib import suppress

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed() -> None:
    """Let glibc keep what is freed for what comes next. Other C libraries, and other systems, stay as they are.

    By default it gives large pieces back at once, so that each step takes those of its activations anew, page by page.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # none has pages of its own
        mallopt(M_TRIM_THRESHOLD, -1)  # the heap never shrinks
        mallopt(M_TOP_PAD, 64 << 20)  # bytes by which it grows besides

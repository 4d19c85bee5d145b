"""An array that processes share."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Shared:
    """An array that processes share: forks have it, another process opens the file that it maps.

    `file` is what such a process needs, None if the array maps no file as a whole: it would get a copy.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        # As a plain array: indexing a memmap object makes another one, which takes longer than to read a small image.
        self.array = np.asarray(array)
        self.file: tuple[str, str, str, int, tuple[int, ...]] | None = None
        below: Any = array
        whole = None  # the mapping that was opened: a part of one is a memmap with the offset of the whole, too
        while isinstance(below, np.ndarray):
            whole = below if isinstance(below, np.memmap) else whole
            below = below.base
        if whole is not None and whole.filename and _is_same(self.array, whole):
            mode = "r+" if self.array.flags.writeable else "r"
            self.file = (str(whole.filename), whole.dtype.str, mode, whole.offset, whole.shape)

    def __reduce__(self) -> Any:
        return (_opened, self.file) if self.file else (Shared, (self.array,))


def _is_same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Return whether two arrays are the same memory, read in the same way, one number after the other."""
    ways = [(array.ctypes.data, array.shape, array.dtype, array.flags.c_contiguous) for array in (one, other)]
    return ways[0] == ways[1] and one.flags.c_contiguous


def _opened(name: str, kind: str, mode: Any, offset: int, shape: tuple[int, ...]) -> Shared:
    return Shared(np.memmap(name, kind, mode, offset, shape))

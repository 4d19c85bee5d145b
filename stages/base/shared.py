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
        mapped: Any = array
        while mapped is not None and not isinstance(mapped, np.memmap):
            mapped = getattr(mapped, "base", None)
        self.file: tuple[str, str, str, int, tuple[int, ...]] | None = None
        if mapped is not None and mapped.filename and mapped.shape == array.shape and mapped.dtype == array.dtype:
            mode = "r+" if self.array.flags.writeable else "r"
            self.file = (str(mapped.filename), array.dtype.str, mode, mapped.offset, array.shape)

    def __reduce__(self) -> Any:
        return (_opened, self.file) if self.file else (Shared, (self.array,))


def _opened(name: str, kind: str, mode: Any, offset: int, shape: tuple[int, ...]) -> Shared:
    return Shared(np.memmap(name, kind, mode, offset, shape))

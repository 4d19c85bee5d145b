"""The user's image files into the memory-mapped images.npy, by as many processes as there are cores.

The processes are forked, so they write into the array that this one has mapped.
"""

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.base.processes import cores
from stages.base.workers import Workers
from stages.sources.images import ImageSpec, from_file, pixel_limit
from stages.sources.rejections import Rejection, UnusableError

CHUNK = 64  # images at most that a process decodes before it reports
WORTH_A_PROCESS = 50  # images; for fewer, starting it costs more than it saves
KILLED = "one of the processes that decode images was killed, perhaps because memory or the disk is full"

Rows = npt.NDArray[np.int64]
Reader = Callable[[int], npt.NDArray[np.uint8]]  # the pixels of an image by its row; raises UnusableError, InputError
Decoded = tuple[bytes, dict[int, Rejection]]  # of a chunk: the digests, one after the other, and what is unusable


def file_reader(names: Iterable[str], folder: Path, spec: ImageSpec) -> Reader:
    """Return the function that reads the image of a row from its file; `names` are the rows' paths in the folder."""
    files = [f"{folder}/{name}" for name in names]
    return lambda row: from_file(files[row], spec)


def decode(
    images: npt.NDArray[np.uint8], read: Reader, rows: Rows, max_pixels: int
) -> tuple[npt.NDArray[np.uint64], dict[int, Rejection]]:
    """Write the images of `rows` to their places in the memory-mapped array `images`, (n, h, w) or (n, 3, h, w).

    Return (len(rows), 2): 128 bits of blake2b of each image, and the rejections of the unusable ones, by row. Memory
    does not grow with the images. Raises InputError if a process is killed or memory is full.
    """
    size = chunk_size(len(rows))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    # As a plain array: indexing a memmap object makes another one, which takes longer than to decode a small image.
    decode_chunk = partial(_decode_chunk, np.asarray(images), read, max_pixels)
    n_processes = min(cores(), len(rows) // WORTH_A_PROCESS)
    workers = Workers(decode_chunk, n_processes if n_processes > 1 else 0, KILLED)
    digests, rejections = bytearray(), {}
    try:
        with tqdm(total=len(rows), unit=" images", desc="decoding", disable=None, leave=False) as bar:
            for chunk, (of_chunk, unusable) in zip(chunks, workers.map(chunks), strict=True):
                digests += of_chunk
                rejections.update(unusable)
                bar.update(len(chunk))
    finally:
        workers.end()
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), rejections


def chunk_size(n_images: int) -> int:
    """Return how many images make a chunk: fewer of a small set, which may be large ones, for all cores to share."""
    return min(CHUNK, max(1, n_images // 50))


def _decode_chunk(images: npt.NDArray[np.uint8], read: Reader, max_pixels: int, rows: Rows) -> Decoded:
    digests, rejections = bytearray(), {}
    with pixel_limit(max_pixels):
        for row in rows.tolist():
            try:
                images[row] = read(row)
            except UnusableError as error:
                rejections[row] = error.rejection
            digests += blake2b(images[row], digest_size=16).digest()
    return bytes(digests), rejections

"""The user's image files into a memory-mapped array, by as many processes as there are cores.

They write into the array that this one has mapped.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.base import workers
from stages.base.processes import cores
from stages.base.shared import Shared
from stages.base.workers import Workers
from stages.sources.decoders import decoders
from stages.sources.images import ImageSpec, Picture, from_file, original_digest
from stages.sources.rejections import Rejection, UnusableError

CHUNK = 64  # images at most that a process decodes before it reports
WORTH_A_PROCESS = 50  # images; for fewer, starting it costs more than it saves
KILLED = "one of the processes that decode images was killed, perhaps because memory or the disk is full"
# What is kept of each image: 128 bits of blake2b, its largest value of 16 bits, whether it shows colour that the array
# has no channels for, and whether it is of one colour. Of an unusable image, the zeros that stand for it.
FACTS = np.dtype([("digest", np.uint64, 2), ("largest", np.uint16), ("colour", np.bool_), ("constant", np.bool_)])

Result = TypeVar("Result")
Rows = npt.NDArray[np.int64]
Facts = npt.NDArray[np.void]  # of the type FACTS
Reader = Callable[[int], Picture]  # the image of a row, prepared; raises UnusableError, InputError
Decoded = tuple[bytes, dict[int, Rejection]]  # of a chunk: the facts, one after the other, and what is unusable


def file_reader(files: Sequence[str], spec: ImageSpec) -> Reader:
    """Return the function that reads the image of a row from its file."""
    return partial(_read, files, spec)


def paths(names: Iterable[str], folder: Path) -> list[str]:
    """Return the paths of the rows' files, which are called so in the folder."""
    return [f"{folder}/{name}" for name in names]


def decode(
    images: npt.NDArray[np.uint8],
    read: Reader,
    rows: Rows,
    max_pixels: int,
    until_colour: bool = False,
    bar: "tqdm[Any] | None" = None,
    takes_stderr: bool = True,
    places: Rows | None = None,
) -> tuple[Facts, dict[int, Rejection]]:
    """Write the images of `rows` to their places in the memory-mapped array `images`, (n, h, w) or (n, 3, h, w).

    `places` has the place of each row; None: it is its number.

    Return the facts of each image, (len(rows),), and the rejections of the unusable ones, by row; with `until_colour`
    only of the first ones, up to some that show colour. A `bar` of the caller's is moved on; else there is an own one.
    `takes_stderr` is as for `decoders`.
    Memory does not grow with the images. Raises InputError if a process is killed or memory is full.
    """
    shared = Shared(images)
    decode_chunk = partial(_decode_chunk, shared, read, max_pixels, takes_stderr, places)
    found, rejections = bytearray(), dict[int, Rejection]()
    # Memory without a file only forks share.
    alone = shared.file is None and workers.START != "fork"
    with closing(_chunks(decode_chunk, rows, "decoding", bar, alone)) as chunks:
        for of_chunk, unusable in chunks:
            found += of_chunk
            rejections.update(unusable)
            if until_colour and np.frombuffer(of_chunk, FACTS)["colour"].any():
                break
    return np.frombuffer(bytes(found), FACTS).copy(), rejections


def originals(names: Iterable[str], folder: Path, rows: Rows, max_pixels: int) -> npt.NDArray[np.uint64]:
    """Return a digest of the pixels of each image before it is prepared, (len(rows), 2). Otherwise as `decode`."""
    chunks = _chunks(partial(_original_chunk, paths(names, folder), max_pixels), rows, "comparing")
    digests = b"".join(chunks)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def chunk_size(n_images: int) -> int:
    """Return how many images make a chunk: fewer of a small set, which may be large ones, for all cores to share."""
    return min(CHUNK, max(1, n_images // 50))


def _chunks(
    function: Callable[[Rows], Result], rows: Rows, what: str, bar: "tqdm[Any] | None" = None, alone: bool = False
) -> Generator[Result, None, None]:
    """Yield what the function makes of the rows, a chunk of them at a time. Raises InputError as `decode` does.

    This process does it `alone`, or others do where that is worth it.
    """
    size = chunk_size(len(rows))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    n_processes = 0 if alone else min(cores(), len(rows) // WORTH_A_PROCESS)
    processes = Workers(function, n_processes if n_processes > 1 else 0, KILLED)
    try:
        own = nullcontext(bar) if bar else tqdm(total=len(rows), unit=" images", desc=what, disable=None, leave=False)
        with own as moved:
            for chunk, result in zip(chunks, processes.map(chunks), strict=True):
                yield result
                moved.update(len(chunk))
    finally:
        processes.end()


def _decode_chunk(
    shared: Shared, read: Reader, max_pixels: int, takes_stderr: bool, places: Rows | None, rows: Rows
) -> Decoded:
    images = shared.array
    facts, rejections, digests = np.zeros(len(rows), FACTS), dict[int, Rejection](), bytearray()
    with decoders(max_pixels, takes_stderr) as said:
        for place, row in enumerate(rows.tolist()):
            there = row if places is None else places[row]
            try:
                images[there], facts["colour"][place], facts["largest"][place] = read(row)
                said()
            except UnusableError as error:
                rejections[row] = error.rejection.in_words(said())
            content = images[there].tobytes()
            facts["constant"][place] = _is_constant(content, images.shape[-1] ** 2)
            digests += blake2b(content, digest_size=16).digest()
    facts["digest"] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    return facts.tobytes(), rejections


def _read(files: Sequence[str], spec: ImageSpec, row: int) -> Picture:
    return from_file(files[row], spec)


def _is_constant(content: bytes, n_pixels: int) -> bool:
    """Return whether each channel of an image, one behind the other, has one value."""
    planes = (content[start : start + n_pixels] for start in range(0, len(content), n_pixels))
    return all(plane.count(plane[:1]) == len(plane) for plane in planes)


def _original_chunk(files: list[str], max_pixels: int, rows: Rows) -> bytes:
    digests = bytearray()
    with decoders(max_pixels):
        for row in rows.tolist():
            try:
                digests += original_digest(files[row], max_pixels)
            except UnusableError:  # which it was not before, so it is equal to none
                digests += int(row).to_bytes(16)
    return bytes(digests)

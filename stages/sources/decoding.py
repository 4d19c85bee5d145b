"""The user's image files into the memory-mapped images.npy, by as many processes as there are cores."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from traceback import format_exc
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.base.errors import InputError
from stages.base.processes import cores, leave_signals_to_parent, signals_held
from stages.sources.images import ImageSpec, from_file, pixel_limit
from stages.sources.rejections import Rejection, UnusableError

CHUNK = 64  # images at most that a process decodes before it reports
WORTH_PROCESSES = 500  # images; for fewer, importing torch and starting processes cost more than they save

Rows = npt.NDArray[np.int64]
Reader = Callable[[int], npt.NDArray[np.uint8]]  # the pixels of an image by its row; raises UnusableError, InputError
Decoded = tuple[bytes, dict[int, Rejection]]  # of a chunk: the digests, one after the other, and what is unusable


def file_reader(names: Iterable[str], folder: Path, spec: ImageSpec) -> Reader:
    """Return the function that reads the image of a row from its file; `names` are the rows' paths in the folder."""
    return partial(_read_row, list(names), f"{folder}/", spec)


def _read_row(names: list[str], folder: str, spec: ImageSpec, row: int) -> npt.NDArray[np.uint8]:
    return from_file(folder + names[row], spec)


def decode(
    file: Path, read: Reader, rows: Rows, max_pixels: int
) -> tuple[npt.NDArray[np.uint64], dict[int, Rejection]]:
    """Write the images of `rows` to their places in the array in `file`, uint8 (n, h, w) or (n, 3, h, w).

    Return (len(rows), 2): 128 bits of blake2b of each image, and the rejections of the unusable ones, by row. Memory
    does not grow with the images. Raises InputError if a process is killed or memory is full.
    """
    size = chunk_size(len(rows))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    decode_chunk = partial(_decode_chunk, file, read, max_pixels)
    worth_it = len(rows) >= WORTH_PROCESSES and cores() > 1
    decoded = _in_processes(decode_chunk, chunks) if worth_it else map(decode_chunk, chunks)
    digests, rejections = bytearray(), {}
    with tqdm(total=len(rows), unit=" images", desc="decoding", disable=None, leave=False) as bar:
        for chunk, (of_chunk, unusable) in zip(chunks, decoded, strict=True):
            digests += of_chunk
            rejections.update(unusable)
            bar.update(len(chunk))
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), rejections


def chunk_size(n_images: int) -> int:
    """Return how many images make a chunk: fewer of a small set, which may be large ones, for all cores to share."""
    return min(CHUNK, max(1, n_images // 50))


def _decode_chunk(file: Path, read: Reader, max_pixels: int, rows: Rows) -> Decoded:
    # As a plain array: indexing a memmap object makes another one, which takes longer than to decode a small image.
    array = np.asarray(np.load(file, mmap_mode="r+", allow_pickle=False))
    digests, rejections = bytearray(), {}
    with pixel_limit(max_pixels):
        for row in rows.tolist():
            try:
                array[row] = read(row)
            except UnusableError as error:
                rejections[row] = error.rejection
            digests += blake2b(array[row], digest_size=16).digest()
    return bytes(digests), rejections


def _in_processes(decode_chunk: Callable[[Rows], Decoded], chunks: Sequence[Rows]) -> Iterator[Decoded]:
    """Yield what `decode_chunk` returns for each of the chunks, in their order. Raises as `decode` does."""
    from torch.utils.data import DataLoader  # 1.4 s to import, and only large sets need it

    dataset: Any = _Chunks(decode_chunk)  # no subclass of torch's Dataset, which would have to be imported for it
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # a chunk is a batch
        sampler=chunks,
        num_workers=cores(),
        collate_fn=_unchanged,  # by default it would make tensors of the results
        worker_init_fn=_start_worker,
    )
    before = set(multiprocessing.active_children())
    try:
        for result in _results(loader):
            if isinstance(result, Exception):
                raise result
            yield result
    finally:  # by itself the loader would wait for the chunks that are begun
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
            process.join()


def _results(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield what the processes return. Raises InputError if one of them is killed."""
    try:
        with signals_held():  # until a process is ready, Ctrl-C would find this one's handlers in it
            try:
                results = iter(loader)
            finally:
                # torch's own handler would raise anywhere in this process when another one dies; now the loader does.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from results
    except RuntimeError as error:  # errors of decoding come as values, so it is torch that raises
        raise InputError(
            "one of the processes that decode images was killed, perhaps because memory or the disk is full"
        ) from error


class _Chunks:
    """What runs in the processes: a chunk to what was decoded."""

    def __init__(self, decode_chunk: Callable[[Rows], Decoded]) -> None:
        self._decode_chunk = decode_chunk

    def __getitem__(self, rows: Rows) -> Decoded | Exception:
        try:
            return self._decode_chunk(rows)
        except Exception as error:  # as a value: raised here, it would arrive with a traceback as its text
            error.add_note(format_exc())
            return error


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(_number: int) -> None:
    leave_signals_to_parent()
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler would print that shared memory is full

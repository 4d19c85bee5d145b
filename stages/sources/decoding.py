"""All images into the memory-mapped images.npy, by as many processes as there are cores."""

import multiprocessing
import signal
from collections.abc import Callable
from hashlib import blake2b
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.base.errors import InputError
from stages.base.processes import cores, leave_signals_to_parent, signals_held
from stages.sources import images

CHUNK = 64  # images at most from one report to the next
WORTH_A_PROCESS = 50  # images; for fewer, starting it costs more than it saves

Reader = Callable[[int], npt.NDArray[np.uint8]]  # gives the pixels of an image by its row; raises UnusableError
Decoded = tuple[slice, bytes, dict[int, str]]  # which of the rows, their digests, and why some are unusable
# Why the kernel ends a process.
ENDINGS = {signal.SIGKILL: "when memory is full", signal.SIGBUS: "when the disk is full"}


def decode(
    target: Path, read: Reader, rows: npt.NDArray[np.int64], max_pixels: int
) -> tuple[npt.NDArray[np.uint64], dict[int, str]]:
    """Write the images of `rows` to their places in the array of the file `target`.

    Return (len(rows), 2): 128 bits of blake2b for each, and the reasons of the unusable ones, by row. Memory does not
    grow with the images. Raises InputError if a process is killed or memory is full.
    """
    digests = np.zeros((len(rows), 2), np.uint64)
    reasons: dict[int, str] = {}
    with tqdm(total=len(rows), unit=" images", desc="decoding", disable=None, leave=False) as bar:

        def note(decoded: Decoded) -> None:
            where, found, unusable = decoded
            digests[where] = np.frombuffer(found, np.uint64).reshape(-1, 2)
            reasons.update(unusable)
            bar.update(len(found) // 16)

        n_processes = min(cores(), len(rows) // WORTH_A_PROCESS)
        if n_processes > 1:
            _in_processes(n_processes, note, target, read, rows, max_pixels)
        else:
            array = _mapped(target)
            for start in range(0, len(rows), chunk_size(len(rows))):
                note(_chunk(array, read, rows, start, max_pixels))
    return digests, reasons


def chunk_size(n_images: int) -> int:
    """Return how many images make a chunk: fewer of a small set, which may be large ones, for all cores to share."""
    return min(CHUNK, max(1, n_images // 50))


def _chunk(
    array: npt.NDArray[np.uint8], read: Reader, rows: npt.NDArray[np.int64], start: int, max_pixels: int
) -> Decoded:
    digests, reasons = bytearray(), {}
    where = slice(start, min(start + chunk_size(len(rows)), len(rows)))
    with images.limited(max_pixels):
        for row in rows[where].tolist():
            try:
                array[row] = read(row)
            except images.UnusableError as error:
                reasons[row] = str(error)
            digests += blake2b(array[row], digest_size=16).digest()
    return where, bytes(digests), reasons


def _mapped(target: Path) -> npt.NDArray[np.uint8]:
    # As a plain array: each row taken of a memmap object would be one, too, which takes longer than to decode it.
    return np.asarray(np.load(target, mmap_mode="r+", allow_pickle=False))


def _in_processes(n_processes: int, note: Callable[[Decoded], None], *work: Any) -> None:
    """Let processes take chunk after chunk, and note what they report.

    Not a pool: multiprocessing's hangs when a process is killed, and that of concurrent.futures, when interrupted,
    first does what it has begun.
    """
    context = multiprocessing.get_context()
    following = context.Value("q", 0)  # the first row of the next chunk
    working: dict[Any, Any] = {}  # by the pipe that a process reports to
    try:
        with signals_held():
            for _ in range(n_processes):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(sender, following, *work), daemon=True)
                process.start()
                sender.close()
                working[receiver] = process
        while working:
            for ready in wait(list(working)):
                try:
                    received = cast(Connection, ready).recv()
                except EOFError:
                    process = working[ready]
                    process.join()
                    if process.exitcode:
                        raise InputError(
                            f"a process that decodes images was ended by {_ending(process.exitcode)}"
                        ) from None
                    del working[ready]
                    continue
                if isinstance(received, InputError):
                    raise received
                note(received)
    finally:
        for process in working.values():
            process.terminate()
            process.join()


def _work(
    sender: Connection, following: Any, target: Path, read: Reader, rows: npt.NDArray[np.int64], max_pixels: int
) -> None:
    leave_signals_to_parent()
    array, parent = _mapped(target), multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        with following.get_lock():
            start = following.value
            following.value += chunk_size(len(rows))
        if start >= len(rows):
            break
        try:
            sender.send(_chunk(array, read, rows, start, max_pixels))
        except InputError as error:
            sender.send(error)


def _ending(exitcode: int) -> str:
    if exitcode >= 0:
        return f"an error, {exitcode}"
    number = signal.Signals(-exitcode)
    return number.name + (f", which the kernel does {ENDINGS[number]}" if number in ENDINGS else "")

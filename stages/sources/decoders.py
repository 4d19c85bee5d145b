"""Pillow and the libraries below it: their limits, and what they say about a file."""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, PngImagePlugin

METADATA = 64 << 20  # bytes of a PNG's text and colour profile, decompressed; those of one with more are not read
PNG = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
WORDS = 300  # characters of what is said about a file


@contextmanager
def decoders(max_pixels: int, takes_stderr: bool = True) -> Iterator[Callable[[], str]]:
    """Make `max_pixels` Pillow's own limit, too, which some formats reach before their size is known.

    Meanwhile nothing that Pillow warns of, or that a library such as libtiff writes to the standard error stream, is
    shown. Yields the function that returns it, as far as it was said since the last call: one line, or "". Where others
    of this process write to the stream meanwhile, leave it to them.
    """
    limits = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    reasons = Image.WARN_POSSIBLE_FORMATS
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)

        def said() -> str:
            texts = [str(warning.message) for warning in warned]
            warned.clear()
            if takes_stderr and (length := os.lseek(2, 0, os.SEEK_CUR)):
                texts.append(os.pread(file.fileno(), length, 0).decode(errors="replace"))
                file.truncate(0)
                os.lseek(2, 0, os.SEEK_SET)
            return _one_line(texts)

        sys.stderr.flush()
        stderr = os.dup(2)
        if takes_stderr:
            os.dup2(file.fileno(), 2)
        Image.MAX_IMAGE_PIXELS = max_pixels
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = METADATA
        Image.WARN_POSSIBLE_FORMATS = True  # what a decoder found wrong with a file that it took for its own
        try:
            yield said
        finally:
            if takes_stderr:
                os.dup2(stderr, 2)
            os.close(stderr)
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = limits
            Image.WARN_POSSIBLE_FORMATS = reasons


def plain(text: str) -> str:
    """Return a decoder's words without addresses in memory, which differ from run to run."""
    return re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", text)


def without_metadata(content: bytes) -> bytes:
    """Return a PNG without its texts, colour profile and EXIF: whatever is wrong with them, the pixels may be good."""
    if not content.startswith(PNG):
        return content
    kept, start = [PNG], len(PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] not in PNG_METADATA:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _one_line(texts: list[str]) -> str:
    lines = dict.fromkeys(" ".join(line.split()) for text in texts for line in plain(text).splitlines())
    joined = "; ".join(filter(None, lines))
    return joined if len(joined) <= WORDS else joined[:WORDS] + " ..."

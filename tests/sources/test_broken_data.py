"""Broken images, folders, tables and params: each gives its clear error, and leaves nothing behind."""

import io
import os
import re
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.base.params import load_params
from stages.prepare import prepare
from tests.conftest import ROOT, params_with, write_image

SECONDS = 20  # that the least error may take, on a busy machine


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def good(root: Path) -> Path:
    """Write two classes of ten images, and a table of them."""
    for i in range(20):
        write_image(root / "ab"[i % 2] / f"{i:02}.png", i)
    return root


def table(root: Path, *rows: str, header: str = "image,label") -> None:
    """Write the table of `good`, and `rows`."""
    lines = [f"{'ab'[i % 2]}/{i:02}.png,{'ab'[i % 2]}" for i in range(20)]
    (root / "labels.csv").write_text("\n".join([header, *lines, *rows, ""]))


def check(root: Path, message: str, **params: Any) -> str:
    """Prepare the folder, which must end with this message, and a list of the images if they are what is wrong.

    Return all that it says.
    """
    values = {"source": "folder", "path": str(root), "valid_fraction": 0.2, "test_fraction": 0.2} | params
    out = root.parent / "out"
    out.mkdir()
    target = params_with({f"prepare.{name.replace('__', '.')}": value for name, value in values.items()}).prepare
    with pytest.raises(InputError, match=f"(?s){message}") as raised:
        prepare(target, out / "prepared")
    said = str(raised.value)
    counted = re.match(r"(\d+) of \d+ images .* cannot be used", said)
    assert [path.name for path in out.iterdir()] == ["rejected.csv"] * bool(counted)
    if counted:
        assert len(pd.read_csv(out / "rejected.csv")) == int(counted[1])
        assert f"All of them are listed in {out}/rejected.csv" in said
    return said


def encoded(format_: str, side: int = 8, mode: str = "L", **options: Any) -> bytes:
    file, n_channels = io.BytesIO(), len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(77).integers(0, 256, (side, side, n_channels), dtype=np.uint8)
    Image.frombytes(mode, (side, side), pixels.tobytes()).save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def saved(image: Image.Image, format_: str = "TIFF") -> bytes:
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


def tiff(*entries: tuple[int, int], data: bytes) -> bytes:
    """Return a TIFF of these tags and their numbers; `data` stands at byte 8, and the directory behind it."""
    directory = b"".join(
        struct.pack("<HHII", tag, 4 if number > 0xFFFF or tag == 324 else 3, 1, number) for tag, number in entries
    )
    place = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", place) + data.ljust(place - 8, b"\0")
    return head + struct.pack("<H", len(entries)) + directory + bytes(4)


def gray(bits: int, zero: int, data: bytes) -> bytes:
    """Return a TIFF of 8x8 pixels of so many bits; `zero` is 1 where 0 is black."""
    return tiff(
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, zero),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(data)),
        data=data,
    )


HUGE_TILE = tiff(
    (256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, 24_000), (323, 24_000), (324, 8), (325, 17),
    data=zlib.compress(bytes(1000)),
)  # fmt: skip
SMALL_GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
HUGE_GIF = (  # its only frame is as large as its canvas, and to be cleared afterwards
    b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"!\xf9\x04\x08\x00\x00\x00\x00"
    b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
)
TOO_MANY = r"too many pixels: [\d,]+, and prepare\.max_pixels is 50,000,000"
CUT, NO_IMAGE = "cut or damaged", "not an image: not PNG, JPEG, BMP, GIF, TIFF or WEBP"
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", NO_IMAGE),
    "text": (b"a rose is a rose\n", NO_IMAGE),
    "zeros": (bytes(1000), NO_IMAGE),
    "noise": (np.random.default_rng(0).bytes(1000), NO_IMAGE),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(50), NO_IMAGE),
    "PDF": (b"%PDF-1.7\n", NO_IMAGE),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", NO_IMAGE),
    "PPM": (b"P5 2 2 255 \0\0\0\0", NO_IMAGE),
    "ICO": (encoded("ICO"), NO_IMAGE),
    "zip": (b"PK\x03\x04" + bytes(50), NO_IMAGE),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins", NO_IMAGE),
    "PNG, signature alone": (b"\x89PNG\r\n\x1a\n", NO_IMAGE),
    "PNG, cut in its header": (encoded("PNG")[:20], CUT),
    "PNG, cut in its pixels": (encoded("PNG")[:60], CUT),
    "PNG, half of it": (encoded("PNG", 64)[:2000], CUT),
    "PNG, a bit flipped": (png(8, 8, chunk(b"IDAT", zlib.compress(bytes(72))[:-6] + b"\xff" * 6)), CUT),
    "PNG, without pixels": (png(8, 8), CUT),
    "PNG, header's checksum": (encoded("PNG")[:29] + b"xxxx" + encoded("PNG")[33:], NO_IMAGE),
    "PNG, of no size": (png(0, 0, chunk(b"IDAT", zlib.compress(b""))), f"{CUT}|{NO_IMAGE}"),
    "PNG, bomb": (png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(60_001)))), TOO_MANY),
    "PNG, just too large": (png(50_001, 1000, chunk(b"IDAT", zlib.compress(b""))), TOO_MANY),
    "PNG, bomb in its text": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))), CUT),
    "JPEG, half of it": (encoded("JPEG", 64)[:1500], CUT),
    "JPEG, cut in its header": (encoded("JPEG")[:100], f"{CUT}|{NO_IMAGE}"),
    "JPEG, start alone": (b"\xff\xd8\xff\xe0", NO_IMAGE),
    "JPEG, bomb": (
        encoded("JPEG").replace(b"\x00\x11\x08\x00\x08\x00\x08", b"\x00\x11\x08\xff\xff\xff\xff")
        if b"\x00\x11\x08\x00\x08\x00\x08" in encoded("JPEG")
        else encoded("JPEG").replace(b"\x00\x0b\x08\x00\x08\x00\x08", b"\x00\x0b\x08\xff\xff\xff\xff"),
        TOO_MANY,
    ),
    "GIF, half of it": (encoded("GIF", 64)[:2500], CUT),
    "GIF, without a frame": (SMALL_GIF + b";", f"{CUT}|{NO_IMAGE}"),
    "GIF, bomb": (HUGE_GIF, TOO_MANY),
    "BMP, half of it": (encoded("BMP", 64)[:2500], CUT),
    "BMP, bomb": (
        encoded("BMP")[:18] + struct.pack("<ii", 100_000, 100_000) + encoded("BMP")[26:],
        TOO_MANY,
    ),
    "TIFF, half of it": (encoded("TIFF", 64)[:2500], f"{CUT}|{NO_IMAGE}"),
    "TIFF, without a directory": (b"II*\0" + struct.pack("<I", 9999), f"{CUT}|{NO_IMAGE}"),
    "TIFF, compressed, half of it": (encoded("TIFF", 64, compression="tiff_lzw")[:2500], f"{CUT}|{NO_IMAGE}"),
    "TIFF, bomb in a tile": (HUGE_TILE, TOO_MANY),
    "TIFF of 16 bits, 0 is white": (gray(16, 0, bytes(128)), "unsupported pixels: of 16 bits with 0 for white"),
    "TIFF of 12 bits": (gray(12, 1, bytes(96)), "unsupported pixels: .* of 12 bits"),
    "TIFF of floats": (saved(Image.new("F", (8, 8), 0.5)), "unsupported pixels: Pillow's mode F"),
    "TIFF of 32 bits": (saved(Image.new("I", (8, 8), 70_000)), "unsupported pixels: of more than 16 bits"),
    "TIFF below zero": (saved(Image.new("I", (8, 8), -1)), "unsupported pixels: of more than 16 bits"),
    "TIFF in LAB": (saved(Image.new("LAB", (8, 8))), "unsupported pixels: Pillow's mode LAB"),
    "WebP, half of it": (encoded("WEBP", 64)[:1500], f"{CUT}|{NO_IMAGE}"),
    "WebP, start alone": (b"RIFF\x24\0\0\0WEBPVP8 ", f"{CUT}|{NO_IMAGE}"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, reason = IMAGES[case]
    root = good(tmp_path / "set")
    (root / "a/bad.png").write_bytes(content)
    said = check(
        root, rf"1 of 21 images of .*set cannot be used \([a-z ]+ 1\):\n  a/bad\.png: ({reason})", image_size=8
    )
    assert "prepare.on_bad=skip" in said
    assert " at 0x" not in said, "an address differs from run to run"
    assert "Traceback" not in capfd.readouterr().err


def fifo(root: Path) -> None:
    os.mkfifo(root / "a/bad.png")


def bound(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root / "a")  # a socket's path may only be short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("bad.png")
    os.chdir(here)


def link(target: str, name: str = "a/bad.png") -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(target)


def both(*several: Callable[[Path], None]) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        for change in several:
            change(root)

    return changes


def remove(*names: str) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        for name in names:
            for path in [*root.glob(name)]:
                path.unlink()

    return changes


def image(*names: str, seed: int = 99, **options: Any) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        for name in names:
            write_image(root / name, seed, **options)

    return changes


def moved(**folders: str) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        for old, new in folders.items():
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)

    return changes


def emptied(pattern: str) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        for path in root.glob(pattern):
            path.write_bytes(b"")

    return changes


def nothing(_root: Path) -> None:
    pass


FOLDERS: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "a pipe": (fifo, r"a/bad\.png: not a file", {}),
    "a socket": (bound, r"a/bad\.png: (not a file|unreadable: )", {}),
    "a link to nothing": (link("none.png"), r"a/bad\.png: missing file", {}),
    "a link to itself": (link("bad.png"), r"a/bad\.png: unreadable: Too many levels", {}),
    "a link out": (link("/etc/hostname"), r"a/bad\.png: outside the folder: a link that leads out", {}),
    "a link above": (link("../../other.png"), r"a/bad\.png: outside the folder: a link that leads out", {}),
    "a link to a folder outside": (link("/etc"), r"a/bad\.png: outside the folder: a link that leads out", {}),
    "a link to a folder": (link("../b"), r"a/bad\.png: not a file: a link to a folder, which is not followed", {}),
    "a name that is not UTF-8": (
        image(os.fsdecode(b"a/\xff.png")),
        r"a/\\udcff\.png: not a name: it is not UTF-8",
        {},
    ),
    "a name with a line break": (
        both(image("a/b\nd.png"), emptied("a/b*.png")),
        r"'a/b\\nd\.png': not an image",
        {},
    ),
    "in no class": (image("bad.png"), r"bad\.png: no label: it is in no class's folder", {}),
    "in no class of a split": (
        both(moved(a="train/a", b="train/b"), image("train/bad.png")),
        r"train/bad\.png: no label",
        {},
    ),
    "an unknown class": (nothing, r"b/01\.png: unknown label: b, which is not in", {"classes": ["a", "c"]}),
    "a class without images": (nothing, r"too few:\n  c: train 0, valid 0, test 0$", {"classes": ["a", "b", "c"]}),
    "a class of two": (
        remove("b/0*.png", "b/11.png", "b/13.png", "b/15.png"),
        r"valid_fraction 0\.2 .*too few:\n  b: train 2, valid 0, test 0$",
        {},
    ),
    "one class": (moved(b="a/b"), r"has images of 1 class, 'a'; two are needed", {}),
    "a class that a split lacks": (
        both(moved(a="train/a", b="train/b"), image("test/a/x.png")),
        r"too few:\n  b: train 8, valid 2, test 0$",
        {},
    ),
    "only a test split": (moved(a="test/a", b="test/b"), r"has no images for train, only for test", {}),
    "splits beside classes": (moved(a="train/a"), r"folders of splits, 'train', beside others, 'b'", {}),
    "two folders of one split": (
        both(moved(a="train/a", b="train/b"), image("Test/a/x.png", "eval/a/y.png")),
        r"set has folders 'Test' and 'eval', which all mean test\. Give each split one name",
        {},
    ),
    "splits of unknown names": (
        both(
            moved(a="part1/a", b="part1/b"), image("part2/a/x.png", "part2/b/y.png", "part3/a/z.png", "part3/b/z.png")
        ),
        r"folders of the same names, 'a', 'b', in each of 'part1', 'part2', 'part3', which .* prepare\.classes",
        {},
    ),
    "cameras in a split": (
        both(moved(a="train/left/a", b="train/left/b"), image("train/right/a/x.png", "train/right/b/y.png")),
        r"folders of the same names, 'a', 'b', in each of 'left', 'right', which",
        {},
    ),
    "splits in classes": (
        both(moved(a="x", b="y"), moved(x="a/train", y="b/Testing")),
        r"folders of splits, 'Testing', 'train', in those of classes, 'a', 'b', which can be understood in two ways",
        {},
    ),
    "two sizes": (
        image("a/bad.png", side=9),
        r"null, .* one size, such as a/bad\.png: 8 x 8 \(20 images\), 9 x 9 \(1 images\)\. Set it",
        {},
    ),
    "one large": (
        image("a/00.png", side=9),
        r"null, .* one size, such as a/00\.png: 8 x 8 \(19 images\), 9 x 9 \(1 images\)\. Set it .* e\.g\. 8$",
        {},
    ),
    "oblong": (
        lambda root: Image.new("L", (9, 8)).save(root / "a/00.png"),
        r"8 x 8 \(19 images\), 9 x 8 \(1 images\)",
        {},
    ),
    "one of another size beyond the first ones": (
        both(image(*(f"a/c{i}.png" for i in range(1000))), image("b/z.png", side=9)),
        r"one size, such as b/z\.png; of the first 1,000: 8 x 8 \(1,000 images\)\. Set it",
        {"on_bad": "skip"},
    ),
    "a class whose name a terminal does not show": (
        nothing,
        r"too few:\n  'c\\x1b': train 0, valid 0, test 0$",
        {"classes": ["a", "b", "c\x1b"]},
    ),
    "twice": (image("a/x.png", "a/y.png"), r"\(duplicate 1\):\n  a/y\.png: duplicate: equal to a/x\.png", {}),
    "in two classes": (
        image("a/x.png", "b/x.png"),
        r"\(contradiction 2\):\n  a/x\.png: .* equal to b/x\.png, which is b\n  b/x\.png: .* a/x\.png, which is a",
        {},
    ),
    "in two splits": (
        both(
            moved(a="train/a", b="train/b"),
            image("test/a/x.png", "train/a/x.png"),
            image("test/b/y.png", seed=98),
        ),
        r"\(leak 1\):\n  train/a/x\.png: leak: equal to test/a/x\.png, in test",
        {},
    ),
    "a larger set than is allowed": (
        nothing,
        r"\(too many pixels 20\).*64, and prepare\.max_pixels is 63",
        {"max_pixels": 63},
    ),
    "all of them broken": (
        emptied("*/*.png"),
        r"20 of 20 .*\(not an image 20\).*a: train 0, valid 0, test 0",
        {},
    ),
    "too many to list": (
        both(image(*(f"a/bad{i}.png" for i in range(30))), emptied("a/bad*.png")),
        r"30 of 50 images .*  a/bad26\.png: [^\n]*\n  and 10 more\n",
        {},
    ),
    "skipped, and then too few": (
        emptied("b/1*.png"),
        r"5 of 20 .* cannot be used .*too few:\n  a: train 10, valid 0, test 0\n  b: train 5, valid 0, test 0$",
        {"on_bad": "skip", "valid_fraction": 0.05, "test_fraction": 0.05},
    ),
    "no folder": (moved(**{".": "../other"}), r"prepare\.path: '.*set' is no folder", {}),
    "an empty folder": (remove("*/*.png"), r"prepare\.path: '.*set' has no images", {}),
    "one name twice": (
        nothing,
        r"prepare\.classes: \['a', 'b', 'a'\], should be two or more different",
        {"classes": ["a", "b", "a"]},
    ),
    "one name": (nothing, r"prepare\.classes: \['a'\], should be two or more", {"classes": ["a"]}),
    "no name": (nothing, r"prepare\.classes: \[\], should be two or more", {"classes": []}),
    "a size for no disk": (
        nothing,
        r"prepared images, 20 x 3000000 x 3000000, take 180,000,000,000,000 bytes, and .* free; prepare\.image_size",
        {"image_size": 3_000_000},
    ),
    "a size beyond 64 bits": (nothing, r"take 368,934,881,474,191,032,320 bytes", {"image_size": 4_294_967_296}),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(tmp_path: Path, case: str) -> None:
    changes, message, params = FOLDERS[case]
    root = good(tmp_path / "set")
    changes(root)
    check(root, message, **params)


def written(content: bytes) -> Callable[[Path], None]:
    def changes(root: Path) -> None:
        (root / "labels.csv").write_bytes(content)

    return changes


def rows(*added: str, header: str = "image,label") -> Callable[[Path], None]:
    return lambda root: table(root, *added, header=header)


TABLES: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "no table": (nothing, r"prepare\.csv\.file: .*labels\.csv is no file", {}),
    "a name with a NUL": (nothing, r"prepare\.csv\.file: 'a\\x00\.csv', should hold no NUL", {"csv__file": "a\0.csv"}),
    "backslashes": (rows("a\\x.png,a"), r"a\\x\.png: missing file: a path's folders are told apart by '/'", {}),
    "a folder": (nothing, r"prepare\.csv\.file: .*set/a is no file", {"csv__file": "a"}),
    "a pipe": (lambda root: os.mkfifo(root / "labels.csv"), r"prepare\.csv\.file: .*labels\.csv is no file", {}),
    "a table elsewhere": (nothing, r"prepare\.csv\.file: '\.\./x\.csv' is outside", {"csv__file": "../x.csv"}),
    "a table at an absolute path": (
        nothing,
        r"'/etc/passwd' is outside of prepare\.path",
        {"csv__file": "/etc/passwd"},
    ),
    "an empty file": (written(b""), r"csv\.image: .*labels\.csv has no column 'image'; its columns: none", {}),
    "empty lines": (written(b"\n\n\n"), r"csv\.image: .*labels\.csv has no column 'image'; its columns: none", {}),
    "a header alone": (written(b"image,label\n"), r"labels\.csv has no rows below its header", {}),
    "an image": (written(encoded("PNG")), r"labels\.csv is not UTF-8", {}),
    "Latin-1": (written("image,label\né.png,a\n".encode("latin-1")), r"labels\.csv is not UTF-8 .*save it as such", {}),
    "UTF-16": (written("image,label\na.png,a\n".encode("utf-16")), r"labels\.csv is not UTF-8", {}),
    "too long a row": (rows("a/x.png,a,b,c"), r"labels\.csv, line 22: 4 cells, and 2 in the header", {}),
    "an open quote": (rows('"a/x.png,a'), r"labels\.csv, line 22: .*unexpected end of data\. Is the quotation", {}),
    "an open quote in a long table": (
        rows('"a/x.png,a', *["a/00.png,a"] * 20_000),
        r"labels\.csv, line 22 to \d+: .*field larger than field limit",
        {},
    ),
    "two open quotes": (
        rows('"a/x.png,a', "a/y.png,a", '"a/z.png,a'),
        r"labels\.csv, line 22 to 24: .*',' expected after '\"'",
        {},
    ),
    "an open quote and its end, in labels": (
        rows('a/x.png,"a', "a/y.png,a", 'a/z.png,a"'),
        r"labels\.csv, line 22: a line break in a cell of column 'label'\. Is the quotation",
        {},
    ),
    "a line break in a path": (
        rows('"a/\nx.png",a'),
        r"labels\.csv, line 22: a line break in a cell of column 'image'",
        {},
    ),
    "a carriage return in a label": (rows('a/x.png,"a\rb"'), r"line 22: a line break in a cell of column 'label'", {}),
    "a line break behind others": (
        written(b'text,image,label\r\n"1\r\n2\r\n3",a/00.png,a\r\n\r\n"4\n5","a/\r02.png",b\r\n'),
        r"labels\.csv, line 7: a line break in a cell of column 'image'",
        {},
    ),
    "an open quote and its end, in captions": (
        written(b'image,label,text\na/00.png,a,"one\nb/01.png,b,two\na/02.png,a,three"\nb/03.png,b,four\n'),
        r"labels\.csv, line 3: the image b/01\.png is within a cell of several lines\. Is the quotation",
        {},
    ),
    "an open quote and its end, in captions before the images": (
        written(b'text,image,label\n"one,a/00.png,a\ntwo",b/01.png,b\na/02.png,a,three\n'),
        r"labels\.csv, line 2: the image a/00\.png is within a cell of several lines",
        {},
    ),
    "semicolons": (
        written(b"image;label\na.png;a\n"),
        r"csv\.image: .* no column 'image'; its columns: 'image;label'",
        {},
    ),
    "no column of images": (rows(header="file,label"), r"csv\.image: .* no column 'image'; .*: 'file', 'label'", {}),
    "no column of labels": (rows(header="image,class"), r"csv\.label: .* no column 'label'; .*: 'image', 'class'", {}),
    "no column of splits": (rows(), r"csv\.split: .* no column 'fold'; .*: 'image', 'label'", {"csv__split": "fold"}),
    "two columns of a name": (rows(header="image,image"), r"more than one column 'image'; .*: 'image', 'image'", {}),
    "no header": (written(b"a/00.png,a\na/02.png,a\n"), r"no column 'image'; its columns: 'a/00\.png', 'a'", {}),
    "a missing file": (rows("a/x.png,a"), r"\(missing file 1\):\n  a/x\.png: missing file", {}),
    "a file as a folder": (rows("a/00.png/x.png,a"), r"a/00\.png/x\.png: missing file", {}),
    "a folder as an image": (rows("a,a"), r"\(not a file 1\):\n  a: not a file: a folder", {}),
    "an address": (rows("https://localhost/a.png,a"), r"https://localhost/a\.png: missing file", {}),
    "no path": (rows(",a"), r"\(no path 1\):\n  line 22: no path", {}),
    "a blank path": (rows('"  ",a'), r"line 22: no path", {}),
    "an absolute path": (rows("/etc/hostname,a"), r"/etc/hostname: outside the folder: an absolute path", {}),
    "a path above": (rows("../x.png,a"), r"\.\./x\.png: outside the folder: by '\.\.'", {}),
    "a path above and back": (rows("../set/a/00.png,a"), r"00\.png: outside the folder: by '\.\.'", {}),
    "a link out": (
        both(rows("a/x.png,a"), link("/etc/hostname", "a/x.png")),
        r"a/x\.png: outside the folder: a link",
        {},
    ),
    "through a link out": (
        both(rows("c/hostname,a"), link("/etc", "c")),
        r"c/hostname: outside the folder: a link",
        {},
    ),
    "a NUL": (rows("a/\0.png,a"), r"'a/\\x00\.png': not a name: it holds a NUL", {}),
    "a name too long": (rows(f"{'x' * 300},a"), r"xxx: unreadable: File name too long", {}),
    "no label": (rows("a/x.png,"), r"\(no label 1\):\n  a/x\.png: no label", {}),
    "a blank label": (rows('a/x.png,"  "'), r"a/x\.png: no label", {}),
    "too short a row": (rows("a/x.png"), r"a/x\.png: no label", {}),
    "an unknown label": (rows("a/x.png,c"), r"a/x\.png: unknown label: c, which is not in", {"classes": ["a", "b"]}),
    "one class": (written(b"image,label\na/00.png,a\n"), r"has images of 1 class, 'a'; two are needed", {}),
    "no labels at all": (written(b"image,label\na/00.png,\n"), r"has images of 0 classes; two are needed", {}),
    "a class an image": (written(b"image,label\na/00.png,a\na/02.png,c\n"), r"a: train 1, .*c: train 1", {}),
    "an unknown split": (
        written(b"image,label,split\na/00.png,a,train\nb/01.png,b,holdout\n"),
        r"b/01\.png: unknown split: 'holdout'; accepted: train, training, valid, val, validation, dev, test, testing",
        {"csv__split": "split"},
    ),
    "no split": (
        written(b"image,label,split\na/00.png,a,train\nb/01.png,b,\n"),
        r"b/01\.png: unknown split: ''",
        {"csv__split": "split"},
    ),
    "two names of one split": (
        written(b"image,label,split\na/00.png,a,train\nb/01.png,b,Test\na/02.png,a,eval\n"),
        r"prepare\.csv\.split: .*labels\.csv has 'eval' and 'test', which all mean test\. Give each",
        {"csv__split": "split"},
    ),
    "no training split": (
        written(b"image,label,split\na/00.png,a,test\nb/01.png,b,valid\n"),
        r"has no images for train, only for test, valid",
        {"csv__split": "split"},
    ),
    "the same row twice": (rows("a/00.png,a"), r"a/00\.png: duplicate: equal to a/00\.png", {}),
    "the same image with two labels": (rows("a/00.png,b"), r"\(contradiction 2\):\n  a/00\.png: contradiction", {}),
    "all at once": (
        rows("a/x.png,a", ",b", "/x.png,a", "a/00.png,b", "b/03.png,b", "a/02.png,"),
        r"7 of 26 .*\(contradiction 2, duplicate 1, missing file 1, no label 1, no path 1, outside the folder 1\)",
        {},
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_table(tmp_path: Path, case: str) -> None:
    changes, message, params = TABLES[case]
    root = good(tmp_path / "set")
    changes(root)
    check(root, message, **{"source": "csv"} | params)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: data/none", "path: 7", r"prepare\.path: 7, should be a valid string"),
        ("path: data/none", "path: ''", r"prepare\.path: '', should"),
        ("file: labels.csv", "files: labels.csv", r"prepare\.csv\.files: unknown key \(did you mean file\?\)"),
        ("image: image", "image: null", r"prepare\.csv\.image: None, should be a valid string"),
        ("classes: null", "classes: a", r"prepare\.classes: 'a', should be a valid list"),
        ("classes: null", "classes: [1, 2]", r"prepare\.classes\.0: 1, should be a valid string"),
        ("channels: null", "channels: 2", r"prepare\.channels: 2, should be 1 or 3"),
        ("sixteen_bits: null", "sixteen_bits: 17", r"prepare\.sixteen_bits: 17, should be less than or equal to 16"),
        ("image_size: null", "image_size: 0", r"prepare\.image_size: 0, should be greater than 0"),
        ("fit: crop", "fit: squeeze", r"prepare\.fit: 'squeeze', should be 'crop', 'pad' or 'stretch'"),
        ("max_pixels: 50000000", "max_pixels: -1", r"prepare\.max_pixels: -1, should be greater than 0"),
        ("on_bad: error", "on_bad: ignore", r"prepare\.on_bad: 'ignore', should be 'error' or 'skip'"),
        ("valid_fraction: 0.1", "valid_fraction: 1.5", r"prepare\.valid_fraction: 1\.5, should be less than 1"),
    ],
)
def test_params(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_params(tmp_path / "params.yaml")


def test_the_prepared_folder_is_apart_from_the_data(tmp_path: Path) -> None:
    root = good(tmp_path / "set")
    for prepared in (root, root / "prepared", tmp_path):
        with pytest.raises(InputError, match=r"prepare\.path: .* should not contain each other"):
            prepare(params_with({"prepare.source": "folder", "prepare.path": str(root)}).prepare, prepared)
    assert len(list(root.rglob("*.png"))) == 20

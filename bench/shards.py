"""What DVC takes for many small images: as one file each, and as the shards that prepare makes of them.

    python -m bench.shards /tmp/shards

writes 100,000 PNG files of 28x28 into the folder, and prepares them in shards of 4 MB, 32 of them. Then, for the files
and for the shards, in a repository of their own with a directory as remote: seconds of `dvc add`, `dvc push` and, when
data and cache are gone, `dvc pull`, and how many files the remote holds; then seconds of `dvc add` and `dvc push` when
there is one image more, and how many files were sent. Prints a table in Markdown. A smaller set: --images.
"""

import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from bench.clones import finish, start
from stages.base import cli
from stages.base.files import replacing
from stages.base.instructions import cpu_model
from stages.base.params import load_params
from stages.prepare import prepare

SIDE, N_CLASSES, MB = 28, 10, 4


def main() -> None:
    parser = cli.parser("bench.shards", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    folder, n_images = arguments.folder.resolve(), arguments.images
    files, shards, rows = folder / f"images-{n_images}", folder / "prepared", []
    if not files.exists():
        with replacing(files) as partial:  # an existing folder is taken for a complete one
            for number in tqdm(range(n_images), unit=" images"):
                write(partial, number)
    (files / name(n_images)).unlink(missing_ok=True)
    for what, data in (("one file an image", files), (f"shards of {MB} MB", shards)):
        with TemporaryDirectory(dir=folder) as place:
            rows.append((what, *measured(Path(place), files, data, n_images)))
    print(f"\n{cpu_model()}, {len(os.sched_getaffinity(0))} cores; {n_images:,} images of {SIDE}x{SIDE}\n")
    print("| | files | add, s | push, s | pull, s | one more: files sent | add, s | push, s |")
    print("|---|---|---|---|---|---|---|---|")
    for what, held, add, push, pull, sent, add_again, push_again in rows:
        times = f"{add:.1f} | {push:.1f} | {pull:.1f}"
        print(f"| {what} | {held:,} | {times} | {sent:,} | {add_again:.1f} | {push_again:.1f} |")


def name(number: int) -> str:
    return f"class{number % N_CLASSES}/{number:06}.png"


def write(folder: Path, number: int) -> None:
    """Write an image of noise that follows from its number."""
    file = folder / name(number)
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def measured(place: Path, files: Path, data: Path, n_images: int) -> tuple[Any, ...]:
    """Return the row of the table for the files, or where `data` is another folder for the shards made of them."""
    repository, remote = place / "repository", place / "remote"
    repository.mkdir()
    finish(start(repository, "dvc", "init", "-q", "--no-scm"))
    for key, value in {"core.analytics": "false", "core.check_update": "false"}.items():
        finish(start(repository, "dvc", "config", key, value))
    finish(start(repository, "dvc", "remote", "add", "-q", "-d", "storage", str(remote)))

    def put() -> None:
        shutil.rmtree(repository / "data", ignore_errors=True)
        if data != files:
            changes = {"source": "folder", "path": str(files), "shard_mb": MB}
            prepare(load_params().prepare.model_copy(update=changes), data)
        shutil.copytree(data, repository / "data")

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        finish(start(repository, "dvc", *command))
        return time.perf_counter() - started

    def held() -> int:
        return sum(path.is_file() for path in remote.rglob("*"))

    put()
    add, push = seconds("add", "data"), seconds("push")
    before = held()
    shutil.rmtree(repository / "data")
    shutil.rmtree(repository / ".dvc/cache")
    pull = seconds("pull")
    write(files, n_images)
    try:
        put()
        add_again, push_again = seconds("add", "data"), seconds("push")
        return before, add, push, pull, held() - before, add_again, push_again
    finally:
        (files / name(n_images)).unlink()


if __name__ == "__main__":
    cli.run(main)

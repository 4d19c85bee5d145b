"""How images are streamed from S3: this project's shards beside MosaicML streaming and LitData.

    uv pip install --target /tmp/lit --no-deps litdata lightning-utilities tifffile
    uv pip install --target /tmp/mds --no-deps mosaicml-streaming Brotli python-snappy cramjam xxhash zstd catalogue \\
        'transformers<5' 'huggingface-hub<1' 'tokenizers<0.23' regex hf-xet
    PYTHONPATH=/tmp/lit:/tmp/mds python -m bench.streams

prepares Fashion-MNIST in shards of 2 MB, puts them on a server that speaks as S3 does, and beside them a copy of the
training images in the format of each of the others, in files of 2 MB. Prints, for each and for 0 and 2 processes that
load, seconds to the first batch of 128, images a second in a first epoch, from S3, and in a second, from the cache, and
a digest of the order. The others are no part of the project; those that are not installed are left out. LitData's
obstore is left out, since it refuses a server without TLS; boto3 fetches then.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.base import cli
from stages.base.instructions import cpu_model
from stages.base.params import load_params
from stages.batches.loader import Loader
from stages.batches.prepared import Prepared, Split
from stages.prepare import prepare
from tests.servers import BUCKET, s3

BATCH, MB = 128, 2
LIBRARIES = {"shards": "fsspec", "MosaicML streaming": "streaming", "LitData": "litdata"}
Epochs = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def main() -> None:
    parser = cli.parser("bench.streams", __doc__)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "FOLDER", "WORKERS"), help="used by the bench itself")
    if one := parser.parse_args().one:
        print(json.dumps(measured(one[0], Path(one[1]), int(one[2]))))
        return
    with s3() as environment, TemporaryDirectory() as folder:
        os.environ |= environment | {"S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"]}
        changes = {"source": "fashion_mnist", "shard_mb": MB, "shards_to": f"s3://{BUCKET}/shards"}
        prepare(load_params().prepare.model_copy(update=changes), Path(folder) / "prepared")
        training = Prepared(Path(folder) / "prepared").split("train", torch.device("cpu"))
        print(f"\n{cpu_model()}, {len(os.sched_getaffinity(0))} cores; {len(training.labels):,} images\n")
        print("| | workers | first batch, s | images/s, from S3 | images/s, again | order |\n|---|---|---|---|---|---|")
        for what, library in LIBRARIES.items():
            if find_spec(library) is None:
                continue
            if what != "shards":
                (write_mds if library == "streaming" else write_lit)(training, Path(folder))
            for workers in (0, 2):
                with TemporaryDirectory() as cache:
                    command = [sys.executable, "-m", "bench.streams", "--one", what, folder, str(workers)]
                    home = os.environ | {"REPRONET_HOME": cache, "CACHE": cache}
                    output = subprocess.check_output(command, env=home, text=True)
                first, cold, warm, order = json.loads(output.splitlines()[-1])
                print(f"| {what} | {workers} | {first:.1f} | {cold:,.0f} | {warm:,.0f} | {order} |", flush=True)


def measured(what: str, folder: Path, workers: int) -> tuple[float, float, float, str]:
    """Return seconds to the first batch, images a second in the first and second epoch, and the order's digest."""
    order = hashlib.sha256()
    epochs = {"shards": shards, "MosaicML streaming": mds, "LitData": lit}[what](folder, workers)
    first, speeds = 0.0, []
    for epoch in (1, 2):
        started, n_images = time.perf_counter(), 0
        for images, labels in epochs(epoch):
            first = first or time.perf_counter() - started
            order.update(np.ascontiguousarray(images.numpy()).tobytes())
            n_images += len(labels)
        speeds.append(n_images / (time.perf_counter() - started))
    return first, speeds[0], speeds[1], order.hexdigest()[:8]


def shards(folder: Path, workers: int) -> Epochs:
    split = Prepared(folder / "prepared").split("train", torch.device("cpu"))
    return Loader(split, BATCH, seed=0, workers=workers).epoch


def mds(_folder: Path, workers: int) -> Epochs:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    where = {"remote": f"s3://{BUCKET}/mds", "local": f"{os.environ['CACHE']}/mds"}
    data = StreamingDataset(**where, shuffle=True, shuffle_seed=0, batch_size=BATCH)
    loader: Any = DataLoader(data, batch_size=BATCH, num_workers=workers)
    return lambda _epoch: ((batch["image"], batch["label"]) for batch in loader)


def lit(_folder: Path, workers: int) -> Epochs:
    from litdata import StreamingDataLoader, StreamingDataset

    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    where = {"input_dir": f"s3://{BUCKET}/lit", "cache_dir": os.environ["CACHE"], "storage_options": options}
    data = StreamingDataset(**where, shuffle=True, seed=0)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
    return lambda _epoch: ((batch["image"], batch["label"]) for batch in loader)


def write_mds(training: Split, _folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"image": "ndarray:uint8:28,28", "label": "int"}
    with MDSWriter(out=f"s3://{BUCKET}/mds", columns=columns, size_limit=MB * 1_000_000, progress_bar=False) as out:
        for image, label in zip(training.read(slice(None)).numpy(), training.labels.tolist(), strict=True):
            out.write({"image": image, "label": label})


def write_lit(training: Split, folder: Path) -> None:
    import fsspec
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "lit"), chunk_bytes=MB * 1_000_000)
    for number, image in enumerate(training.read(slice(None))):
        writer[number] = {"image": image, "label": int(training.labels[number])}
    writer.done()
    writer.merge()
    fsspec.filesystem("s3").put(f"{folder}/lit/", f"{BUCKET}/lit/", recursive=True)


if __name__ == "__main__":
    cli.run(main)

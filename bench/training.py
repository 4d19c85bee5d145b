"""Trains the page's Net on Fashion-MNIST by this project and by its peers, in turn: how fast, and to what accuracy.

    python -m bench.training --out docs/performance.md
    python -m bench.training --only repronet "plain PyTorch" --net resnet18 --batch 128   # prints the tables alone

Needs the extra `bench`: pip install -c constraints.txt -e '.[bench]'. With --out the tables of what was measured take
the place of those in the file, and .json and .png beside it have the figures of every round, and bars. Each training is
a process of its own, of --epochs with a validation after each; every round trains each once, so that what else the
machine does meets all alike. Images a second are those after the first step, validation and what ends a training
included. Some three hours on two cores of an x86-64 server; the settings can be measured one by one.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from bench.figures import END, FIGURES, NOTEBOOK, OURS, PORTABLE, START, Setting, tables, write
from bench.peers.run import KERNEL, LR, WIDTHS
from stages.base import cli
from stages.base.errors import InputError
from stages.base.instructions import LIMITS, OUTER, cpu_model
from stages.base.yaml import read_yaml
from stages.prepare import prepare
from tools.sweep import overrides

ROOT = Path(__file__).parents[1]
# glibc gives memory of this size back at once, and every step then takes it anew, page by page.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
NETS = ("Net", "three convolutions", "resnet18")
NET = NETS[:1]


@dataclass(frozen=True)
class Peer:
    """What is measured: a module of bench/peers, with its settings."""

    module: str
    determinism: str = "machine"  # of this project alone
    workers: int = 0  # processes that load images
    nets: tuple[str, ...] = NETS
    environment: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    OURS: Peer("repronet"),
    PORTABLE: Peer("repronet", determinism="portable"),
    "plain PyTorch": Peer("plain"),
    "plain PyTorch (mallopt)": Peer("plain", environment=MALLOC),
    "Keras on TensorFlow": Peer("keras_fit", nets=NET, environment={"KERAS_BACKEND": "tensorflow"}),
    "Keras on TensorFlow (mallopt)": Peer(
        "keras_fit", nets=("Net",), environment={"KERAS_BACKEND": "tensorflow"} | MALLOC
    ),
    "Keras on torch": Peer("keras_fit", nets=NET, environment={"KERAS_BACKEND": "torch"}),
    "Lightning": Peer("lightning_trainer"),
    NOTEBOOK: Peer("notebook"),
    f"{NOTEBOOK} (2 workers)": Peer("notebook", workers=2),
}
IMAGES = 60_000
WAITING = ("GOMP_SPINCOUNT", "OMP_DYNAMIC", "OMP_WAIT_POLICY")  # which stages/__init__.py sets for this process, too
PRECISIONS = ("float32", "bfloat16")
LIBRARIES = ("torch", "keras", "lightning", "tensorflow-cpu")


def main() -> None:
    parser = cli.parser("bench.training", __doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--images", type=positive, default=IMAGES, help="to train on and validate; fewer for slow nets")
    parser.add_argument("--net", nargs="+", choices=NETS, default=["Net"])
    parser.add_argument("--batch", type=positive, nargs="+", default=[20, 128, 512])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only", nargs="+", default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--out", type=Path, help="text in Markdown whose tables to write anew")
    arguments = parser.parse_args()
    if arguments.out:
        text = arguments.out.read_text(encoding="utf-8") if arguments.out.is_file() else ""
        if not (START in text and END in text):
            raise InputError(
                f"--out: {str(arguments.out)!r}, should be a text with {START} and {END} around the tables"
            )
    if unknown := set(arguments.only) - PEERS.keys():
        raise InputError(f"--only: {', '.join(sorted(unknown))}, should be of {', '.join(PEERS)}")
    if not (smallest := max(100, 2 * max(arguments.batch))) <= arguments.images <= IMAGES:
        raise InputError(f"--images: {arguments.images}, should be from {smallest} to {IMAGES}")
    for settings in measure(arguments):
        if arguments.out:
            write(arguments.out, settings)
    print(tables(settings))


def versions() -> dict[str, str]:
    """Return those of the peers' libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def measure(arguments: argparse.Namespace) -> Iterator[list[Setting]]:
    """Yield after each round what was measured in each setting: of each peer and figure the values of all rounds."""
    about = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "date": str(datetime.date.today()),
        "versions": versions(),
        "epochs": arguments.epochs,
        "images": arguments.images,
    }
    settings: list[Setting] = [
        {"net": net, "precision": precision, "batch": batch, **about, "gflops": list[float]()}
        | {
            "rows": [
                {"peer": peer} | {figure: list[float]() for figure in FIGURES}
                for peer in arguments.only
                if net in PEERS[peer].nets
            ]
        }
        for net in arguments.net
        for precision in arguments.precision
        for batch in arguments.batch
    ]
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, arguments.images)
        trainings = arguments.rounds * sum(len(setting["rows"]) for setting in settings)
        with tqdm(total=trainings, unit="training", disable=None) as progress:
            for seed in range(arguments.rounds):
                for setting in settings:
                    product = run(folder, "product", {"precision": setting["precision"]}, {})
                    setting["gflops"].append(product["gflops"])
                    for row in setting["rows"]:
                        found = trained(folder, PEERS[row["peer"]], setting, seed)
                        for figure in FIGURES:
                            row[figure].append(found[figure])
                        progress.update()
                yield settings


def make_data(folder: Path, n_images: int) -> None:
    """Write the prepared set, its splits as arrays, and Fashion-MNIST's files where torchvision looks for them.

    In the splits for training and validation are the first of theirs, `n_images` together.
    """
    prepare(
        overrides.check(["prepare.source=fashion_mnist", "prepare.shard_mb=null", "prepare.shards_to=null"]).prepare,
        folder / "prepared",
    )
    images = np.load(folder / "prepared/images.npy", mmap_mode="r")
    info = json.loads((folder / "prepared/dataset.json").read_text(encoding="utf-8"))
    manifest = pd.read_csv(folder / "prepared/manifest.csv")
    labels = manifest.sort_values("index")["label"].to_numpy()
    numbers = {"train": n_images - n_images // 10, "valid": n_images // 10, "test": None}
    rows_of = {split: manifest[manifest["split"] == split].iloc[:number] for split, number in numbers.items()}
    pd.concat(rows_of.values()).to_csv(folder / "prepared/manifest.csv", index=False)
    for split, kept in rows_of.items():
        rows = kept["index"].to_numpy()
        scaled = (images[rows] - np.float32(info["mean"][0] * 255)) / np.float32(info["std"][0] * 255)
        np.save(folder / f"{split}_images.npy", scaled.astype(np.float32))
        np.save(folder / f"{split}_labels.npy", labels[rows].astype(np.int64))
        np.save(folder / f"{split}_rows.npy", rows)
    raw = folder / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, part in {"train": slice(IMAGES), "t10k": slice(IMAGES, None)}.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[part].astype(np.uint8))


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write an array in MNIST's own format: 8 for bytes and the number of dimensions, each dimension, the values."""
    path.write_bytes(np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes())


def trained(folder: Path, peer: Peer, setting: Setting, seed: int) -> dict[str, float]:
    """Train once, and return what was measured."""
    values = read_yaml((ROOT / "params.yaml").read_bytes(), "params.yaml")
    values["train"] |= {
        "seed": seed, "epochs": setting["epochs"], "batch_size": setting["batch"], "precision": setting["precision"],
        "device": "cpu", "threads": len(os.sched_getaffinity(0)), "determinism": peer.determinism,
    }  # fmt: skip
    values["train"]["optimizer"] |= {"name": "Adam", "lr": LR}
    values["train"]["schedule"] |= {"name": "ConstantLR"}
    if setting["net"] == "resnet18":
        values["train"]["net"]["name"] = "resnet18"
    elif setting["net"] != "Net":
        values["train"]["net"]["arguments"]["Net"] |= {"widths": [*WIDTHS], "kernel": KERNEL}
    (folder / "params.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, too
    options = {"started": time.time(), "epochs": setting["epochs"], "seed": seed, "workers": peer.workers}
    options |= {name: setting[name] for name in ("net", "batch", "precision")}
    return run(folder, peer.module, options, peer.environment, ".")


def run(
    folder: Path, module: str, options: Mapping[str, Any], environment: Mapping[str, str], *arguments: str
) -> dict[str, float]:
    """Run a module of bench/peers, and return what it prints last. Raises InputError with what it says if it fails."""
    # The peers get none of our limits and settings, find the code wherever they run, and keep off a GPU.
    own = {name: value for name, value in os.environ.items() if name not in (*LIMITS, OUTER, *WAITING)}
    own["CUDA_VISIBLE_DEVICES"] = ""
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    command = [sys.executable, "-m", f"bench.peers.{module}", *arguments]
    command += [f"--{name}={value}" for name, value in options.items()]
    ended = subprocess.run(command, cwd=folder, env=own | dict(environment), capture_output=True, text=True)
    if ended.returncode:
        raise InputError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    cli.run(main)

"""Trains the page's Net on Fashion-MNIST by this project and by its peers, in turn: how fast, and to what accuracy.

    python -m bench.training --out docs/performance.md
    python -m bench.training --only repronet "plain PyTorch" --batch 128 --precision float32   # prints the table alone

Needs the extra `bench`: pip install -c constraints.txt -e '.[bench]'. With --out the table takes the place of that in
the file, and .json and .png beside it have the figures of every round, and bars. Each training is a process of its own,
of three epochs with a validation after each; every round trains each once, so that what else the machine does meets all
alike. Images a second are those after the first step. Some three hours on two cores of an x86-64 server.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from bench.peers.run import LR
from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import replacing
from stages.base.instructions import LIMITS, OUTER, cpu_model
from stages.base.yaml import read_yaml
from stages.prepare import prepare
from stages.report.canvas import BLUE, ORANGE
from tools.sweep import overrides

ROOT = Path(__file__).parents[1]
# glibc gives memory of this size back at once, and every step then takes it anew, page by page.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}


@dataclass(frozen=True)
class Peer:
    """What is measured: a module of bench/peers, with its settings."""

    module: str
    determinism: str = "machine"  # of this project alone
    workers: int = 0  # processes that load images
    environment: Mapping[str, str] = field(default_factory=dict)


OURS = "repronet"
PEERS = {
    OURS: Peer("repronet"),
    "repronet (portable)": Peer("repronet", determinism="portable"),
    "plain PyTorch": Peer("plain"),
    "plain PyTorch (mallopt)": Peer("plain", environment=MALLOC),
    "Keras on TensorFlow": Peer("keras_fit", environment={"KERAS_BACKEND": "tensorflow"}),
    "Keras on TensorFlow (mallopt)": Peer("keras_fit", environment={"KERAS_BACKEND": "tensorflow"} | MALLOC),
    "Keras on torch": Peer("keras_fit", environment={"KERAS_BACKEND": "torch"}),
    "Lightning": Peer("lightning_trainer"),
    "notebook": Peer("notebook"),
    "notebook (2 workers)": Peer("notebook", workers=2),
}
PRECISIONS = ("float32", "bfloat16")
START, END = "<!-- measured -->", "<!-- end -->"
FIGURES = ("images_per_second", "first_step", "memory", "accuracy")


def main() -> None:
    parser = cli.parser("bench.training", __doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--batch", type=positive, nargs="+", default=[20, 128, 512])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only", nargs="+", default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--out", type=Path, help="text in Markdown whose table to write anew")
    arguments = parser.parse_args()
    if arguments.out:
        text = arguments.out.read_text(encoding="utf-8") if arguments.out.is_file() else ""
        if not (START in text and END in text):
            raise InputError(f"--out: {str(arguments.out)!r}, should be a text with {START} and {END} around the table")
    if unknown := set(arguments.only) - PEERS.keys():
        raise InputError(f"--only: {', '.join(sorted(unknown))}, should be of {', '.join(PEERS)}")
    for rows in measure(arguments):
        if arguments.out:
            about = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "date": str(datetime.date.today())}
            write(arguments.out, about | {"rounds": len(rows[0]["accuracy"])}, rows)
    print(table(rows))


def write(out: Path, about: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the text with its table anew, and beside it the figures and their picture."""
    text = out.read_text(encoding="utf-8")
    before, after = text.split(START, 1)[0], text.split(END, 1)[1]
    rounds = f"medians of {about['rounds']} rounds" if about["rounds"] > 1 else "one round"
    said = f"{about['cpu']}, {about['cores']} cores, {about['date']}, {rounds}."
    with replacing(out) as partial:
        partial.write_text("\n".join([f"{before}{START}", said, "", table(rows), f"{END}{after}"]), encoding="utf-8")
    with replacing(out.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    with replacing(out.with_suffix(".png")) as partial:
        plot(rows).savefig(partial, format="png", dpi=100)


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the medians of the images a second as bars, with lines from the lowest to the highest."""
    settings = list(dict.fromkeys((row["precision"], row["batch"]) for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows))[::-1]
    figure = Figure(figsize=(1.5 + 3.5 * len(settings), 1 + 0.3 * len(peers)), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(panels, settings, strict=True):
        for row in rows:
            if (row["precision"], row["batch"]) == setting:
                speeds, place = row["images_per_second"], peers.index(row["peer"])
                colour = ORANGE if row["peer"].startswith(OURS) else BLUE
                axes.barh(place, statistics.median(speeds), color=colour)
                axes.plot([min(speeds), max(speeds)], [place, place], color="black", linewidth=1)
        axes.set_title(f"{setting[0]}, batches of {setting[1]}", fontsize=10)
        axes.set_xlabel("images a second")
        axes.set_yticks(range(len(peers)), peers)
    return figure


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def measure(arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Yield after each round the settings of each peer, batch size and precision, and of each figure all values."""
    rows = [
        {"peer": peer, "batch": batch, "precision": precision} | {figure: list[float]() for figure in FIGURES}
        for precision in arguments.precision
        for batch in arguments.batch
        for peer in arguments.only
    ]
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        with tqdm(total=arguments.rounds * len(rows), unit="training", disable=None) as progress:
            for seed in range(arguments.rounds):
                for row in rows:
                    found = trained(folder, PEERS[row["peer"]], row, arguments.epochs, seed)
                    for figure in FIGURES:
                        row[figure].append(found[figure])
                    progress.update()
                yield rows


def make_data(folder: Path) -> None:
    """Write the prepared set, its splits as arrays, and Fashion-MNIST's files where torchvision looks for them."""
    prepare(overrides.check(["prepare.source=fashion_mnist"]).prepare, folder / "prepared")
    images = np.load(folder / "prepared/images.npy", mmap_mode="r")
    info = json.loads((folder / "prepared/dataset.json").read_text(encoding="utf-8"))
    manifest = np.genfromtxt(folder / "prepared/manifest.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    for split in ("train", "valid", "test"):
        rows = manifest["index"][manifest["split"] == split]
        scaled = (images[rows] - np.float32(info["mean"][0] * 255)) / np.float32(info["std"][0] * 255)
        np.save(folder / f"{split}_images.npy", scaled.astype(np.float32))
        np.save(folder / f"{split}_labels.npy", manifest["label"][manifest["split"] == split].astype(np.int64))
        np.save(folder / f"{split}_rows.npy", rows)
    raw, labels = folder / "FashionMNIST/raw", manifest["label"][np.argsort(manifest["index"])]
    raw.mkdir(parents=True)
    for name, rows in {"train": slice(60_000), "t10k": slice(60_000, None)}.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", images[rows])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[rows].astype(np.uint8))


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write an array in MNIST's own format: 8 for bytes and the number of dimensions, each dimension, the values."""
    path.write_bytes(np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes())


def trained(folder: Path, peer: Peer, row: Mapping[str, Any], epochs: int, seed: int) -> dict[str, float]:
    """Train once, and return what was measured."""
    values = read_yaml((ROOT / "params.yaml").read_bytes(), "params.yaml")
    values["train"] |= {
        "seed": seed, "epochs": epochs, "batch_size": row["batch"], "precision": row["precision"], "device": "cpu",
        "threads": len(os.sched_getaffinity(0)), "determinism": peer.determinism,
        "optimizer": {"name": "Adam", "lr": LR, "arguments": {}},
        "schedule": {"name": "ConstantLR", "arguments": {}},
    }  # fmt: skip
    (folder / "params.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, too
    # The peers get none of our limits, find the code wherever they run, and keep off a GPU.
    own = {name: value for name, value in os.environ.items() if name not in (*LIMITS, OUTER)}
    own["CUDA_VISIBLE_DEVICES"] = ""
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    options = {"batch": row["batch"], "precision": row["precision"], "epochs": epochs, "seed": seed}
    command = [sys.executable, "-m", f"bench.peers.{peer.module}", ".", f"--started={time.time()}"]
    command += [f"--{name}={value}" for name, value in (options | {"workers": peer.workers}).items()]
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**own, **peer.environment},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise InputError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown: the medians; of the speed also the spread, and how many times as fast ours is."""
    lines = ["| precision | batch | | images/s | lowest to highest | ours | first step, s | memory, MB | accuracy |"]
    lines.append("|---" * 9 + "|")
    for row in rows:
        ours = next(
            (o for o in rows if o["peer"] == OURS and (o["batch"], o["precision"]) == (row["batch"], row["precision"])),
            None,
        )
        speed, first_step, memory, accuracy = (statistics.median(row[figure]) for figure in FIGURES)
        ratio = f"{statistics.median(ours['images_per_second']) / speed:.2f}" if ours else ""
        spread = f"{min(row['images_per_second']):,.0f} to {max(row['images_per_second']):,.0f}"
        lines.append(
            f"| {row['precision']} | {row['batch']} | {row['peer']} | {speed:,.0f} | {spread} | {ratio}"
            f" | {first_step:.1f} | {memory:,.0f} | {accuracy:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)

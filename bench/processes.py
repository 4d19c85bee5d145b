"""Two processes of one thread beside one of two: images a second of a training, on Fashion-MNIST.

    python -m bench.processes --rounds 5

trains by each in turn, three epochs with a validation after each, the page's Net and one of three convolutions, whose
steps are longer beside what the processes send each other. Some ten minutes on two cores of an x86-64 server.
"""

import os
from pathlib import Path
from statistics import median

from tqdm import tqdm

from bench.clones import finish, fresh, last_run, start
from bench.tracking import TRAIN
from stages.base import cli
from stages.base.instructions import cpu_model
from tools.sweep import overrides

NETS = {
    "Net": [],
    "three convolutions": ["train.net.arguments.Net.widths=[32,64,64]", "train.net.arguments.Net.kernel=3"],
}
COUNTS = {"one of two threads": (1, 2), "two of one": (2, 1)}  # processes, threads
EPOCHS, IMAGES, BATCH = 3, 54_000, 128
ALWAYS = ["prepare.source=fashion_mnist", f"train.epochs={EPOCHS}", f"train.batch_size={BATCH}", "train.device=cpu"]


def main() -> None:
    parser = cli.parser("bench.processes", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    kinds = [(net, count) for net in NETS for count in COUNTS]
    found: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    with fresh() as clone:
        put(clone, [])
        finish(start(clone, "python", "-m", "stages", "prepare", "data/prepared"))
        for _ in tqdm(range(rounds), unit="round", disable=None):
            for net, count in kinds:
                processes, threads = COUNTS[count]
                put(clone, [*NETS[net], f"train.processes={processes}", f"train.threads={threads}"])
                finish(start(clone, *TRAIN))
                _, run = last_run(clone)
                found[net, count].append(EPOCHS * IMAGES / run.data.metrics["seconds/training"])
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, medians of {rounds} rounds, validation included\n")
    print("| images/s | " + " | ".join(COUNTS) + " | ratio, lowest to highest |")
    print("|---" * (2 + len(COUNTS)) + "|")
    for net in NETS:
        one, two = (found[net, count] for count in COUNTS)
        ratios = sorted(b / a for a, b in zip(one, two, strict=True))
        shown = f"{median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"| {net} | {median(one):,.0f} | {median(two):,.0f} | {shown} |")


def put(clone: Path, changes: list[str]) -> None:
    """Write the params of a training."""
    params = overrides.check([*ALWAYS, *changes])
    (clone / "params.yaml").write_text(params.model_dump_json(), encoding="utf-8")  # JSON is YAML, too


if __name__ == "__main__":
    cli.run(main)

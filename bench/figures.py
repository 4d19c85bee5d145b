"""What bench.training has measured, as JSON, as tables with the goals in docs/performance.md, and as bars.

A setting is a net with a batch size and a precision. All its peers are measured in one go, on one machine; other
settings may be from other days and machines, and stay as they are when one is measured anew.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from stages.base.files import replacing
from stages.report.canvas import BLUE, ORANGE

START, END = "<!-- measured -->", "<!-- end -->"
OURS, PORTABLE, NOTEBOOK = "repronet", "repronet (portable)", "notebook"
FIGURES = ("images_per_second", "first_step", "memory", "accuracy")
# Of the page's Net, an image: the convolution forward and its weights' gradient, the linear layer forward and both its
# gradients; a multiplication and an addition are two.
OPERATIONS = 2 * (2 * 32 * 24 * 24 * 25 + 3 * 32 * 12 * 12 * 10)

Setting = Mapping[str, Any]  # net, precision, batch, where and when, and a row for each peer: lists of a value a round


def read(out: Path) -> list[Setting]:
    """Return what has been measured before."""
    path = out.with_suffix(".json")
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def write(out: Path, measured: Sequence[Setting]) -> None:
    """Write the text's tables anew, and beside it the figures and their picture."""
    settings = list({named(setting): setting for setting in [*read(out), *measured]}.values())
    settings.sort(key=lambda each: (each["net"] != "Net", each["net"], each["precision"] != "float32", each["batch"]))
    text = out.read_text(encoding="utf-8")
    before, after = text.split(START, 1)[0], text.split(END, 1)[1]
    with replacing(out) as partial:
        partial.write_text(f"{before}{START}\n{tables(settings)}\n{END}{after}", encoding="utf-8")
    with replacing(out.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    with replacing(out.with_suffix(".png")) as partial:
        plot(settings).savefig(partial, format="png", dpi=100)


def tables(settings: Sequence[Setting]) -> str:
    """Return a table in Markdown for each setting, and one of what was aimed at."""
    blocks = [f"{about(setting)}\n\n{table(setting)}" for setting in settings]
    lines = ["| | goal | reached | |", "|---" * 4 + "|"]
    for setting in settings:
        for name, goal, reached, of in goals(setting):
            verdict = "met" if reached >= goal else "**not met**"
            lines.append(f"| {named(setting)}: {name} | {goal} | {reached:.2f} ({of}) | {verdict} |")
    return "\n\n".join([*blocks, "\n".join(lines)])


def named(setting: Setting) -> str:
    return f"{setting['net']}, {setting['precision']}, batches of {setting['batch']}"


def about(setting: Setting) -> str:
    """Return of what a table is, and how much of the CPU's arithmetic we use."""
    product, speed = median(setting["gflops"]), speeds(setting).get(OURS)
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    rounds, epochs = len(setting["gflops"]), setting["epochs"]
    number = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    number += f" of {epochs} epochs" if epochs > 1 else " of one epoch"
    number += f" of {setting['images']:,} images"
    said = f"**{named(setting)}**: {setting['cpu']}, {setting['cores']} cores, {setting['date']}, {number}; {versions}."
    said += f"\nA product of two matrices of 2048x2048 reaches {product:,.0f} GFLOP/s"
    if speed is None or setting["net"] != "Net":
        return f"{said}."
    ours = speed * OPERATIONS / 1e9
    return f"{said}, this project by the Net's formula {ours:,.0f}: {ours / product:.2f} of it."


def table(setting: Setting) -> str:
    """Return the medians; of the speed also the spread, and how many times as fast we are."""
    lines = ["| | images/s | lowest to highest | ours | first step, s | memory, MB | accuracy |", "|---" * 7 + "|"]
    ours = speeds(setting).get(OURS)
    for row in setting["rows"]:
        speed, first_step, memory, accuracy = (median(row[figure]) for figure in FIGURES)
        ratio = f"{ours / speed:.2f}" if ours else ""
        spread = f"{min(row['images_per_second']):,.0f} to {max(row['images_per_second']):,.0f}"
        lines.append(
            f"| {row['peer']} | {speed:,.0f} | {spread} | {ratio} | {first_step:.1f} | {memory:,.0f} | {accuracy:.4f} |"
        )
    return "\n".join(lines)


def speeds(setting: Setting) -> dict[str, float]:
    """Return the images a second of each peer, the median of its rounds."""
    return {row["peer"]: median(row["images_per_second"]) for row in setting["rows"]}


def goals(setting: Setting) -> Iterator[tuple[str, float, float, str]]:
    """Yield what was aimed at for a setting: what, how many times, how many were reached, and of which figures."""
    found = speeds(setting)
    others = {name: speed for name, speed in found.items() if name not in (OURS, PORTABLE)}
    notebooks = {name: speed for name, speed in others.items() if name.startswith(NOTEBOOK)}
    aims = {
        ("Net", "float32", 20): [(OURS, 2.0, notebooks)],
        ("Net", "float32", 128): [(OURS, 2.0, others), (OURS, 5.0, notebooks), (PORTABLE, 1.5, others)],
    }
    for ours, goal, beside in aims.get((setting["net"], setting["precision"], setting["batch"]), []):
        if ours in found and beside:
            fastest = max(beside, key=lambda name: beside[name])
            reached = found[ours] / beside[fastest]
            yield f"{ours} over {fastest}", goal, reached, f"{found[ours]:,.0f} of {beside[fastest]:,.0f}"


def plot(settings: Sequence[Setting]) -> Figure:
    """Return the medians of the images a second as bars, with lines from the lowest to the highest."""
    peers = list(dict.fromkeys(row["peer"] for setting in settings for row in setting["rows"]))[::-1]
    columns = min(len(settings), 3)
    lines = -(-len(settings) // columns)
    size = (1.5 + 3.5 * columns, (1 + 0.3 * len(peers)) * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes in panels[len(settings) :]:
        axes.remove()
    for axes, setting in zip(panels, settings, strict=False):
        for row in setting["rows"]:
            values, place = row["images_per_second"], peers.index(row["peer"])
            axes.barh(place, median(values), color=ORANGE if row["peer"] in (OURS, PORTABLE) else BLUE)
            axes.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
        for missing in set(peers) - {row["peer"] for row in setting["rows"]}:
            axes.text(0, peers.index(missing), " not measured", va="center", fontsize=8, color="grey")
        axes.set_title(named(setting), fontsize=10)
        axes.set_xlabel("images a second")
        axes.set_yticks(range(len(peers)), peers)
    return figure

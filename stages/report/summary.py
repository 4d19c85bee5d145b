"""A result to read and to hand on, as Markdown: plots/report.md, beside the pictures that it shows."""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.base.errors import listed
from stages.base.params import NO_PART_OF_RESULT, flattened
from stages.base.text import one_line

if TYPE_CHECKING:
    from stages.report.pictures import Result

SPLITS = ("train", "valid", "test")
PATHS = ("prepare.path", "prepare.exclude")
Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
MOST = 30  # classes that are listed, and pairs that were confused
FEW = 30  # test images of a class, below which a share of them says little
SPECIAL = re.compile(r"([\\`*_\[\]<>|~&#!$])")  # what Markdown would take for more than a letter
TITLES = {
    "accuracy": "share of the test images that are called right",
    "accuracy_untrained": "the same of the net before its training",
    "auroc": "area under the ROC curve, mean of the classes",
    "average_precision": "area under the precision-recall curve, mean of the classes",
    "balanced_accuracy": "mean recall of the classes",
    "brier": "squared distance of the probabilities from the labels, 0 to 2",
    "ece": "expected calibration error: by how much confidence and accuracy differ",
    "ece_at_temperature": "the same with scores divided by the temperature",
    "kappa": "Cohen's kappa: agreement beyond chance",
    "loss": "the training's loss function on the test images",
    "macro_f1": "mean F1 of the classes",
    "never_predicted": "classes that no test image was called",
    "temperature": "by which scores are to be divided to fit validation best",
    "top5": "share whose label is among the five most probable classes",
    "valid_accuracy": "accuracy on validation at the epoch whose weights these are",
}


def interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n things, of which `hits` were counted.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share, denominator = hits / n, 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / denominator
    half = Z / denominator * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def write(
    file: Path,
    result: "Result",
    values: dict[str, Any],
    data: dict[str, Any],
    net: str,
    pictures: Sequence[str],
    training: dict[str, Any] | None,
) -> None:
    """Write the report of a result.

    `values` are evaluate.json's, `data` is dataset.json's, and `pictures` are the names of those drawn. `training` has
    what is known of it: params, the chosen epoch, how many there were, and the digest of the weights.
    """
    parts = [
        _head(result, values, net, training),
        _data(result, data),
        ["## Training", *_shown(["learning_curves"], "Learning curves")] if training else [],
        _metrics(result, values),
        _confusion(result),
        _classes(result, pictures),
        _mistakes(result),
        _limits(result, values),
        _rebuilt(training, data) if training else [],
    ]
    text = "\n\n".join("\n".join(part) for part in parts if part)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


def _head(result: "Result", values: dict[str, Any], net: str, training: dict[str, Any] | None) -> list[str]:
    n, right = len(result.labels), int(result.confusion.diag().sum())
    chosen = f" Its weights are those of epoch {training['chosen']} of {training['epochs']}." if training else ""
    return [
        f"# {escaped(net)}: test accuracy {values['accuracy']:.4f}",
        "",
        f"{right:,} of {n:,} test images are called right (95 % interval {_share(right, n)}).{chosen}",
    ]


def _data(result: "Result", data: dict[str, Any]) -> list[str]:
    side, kind = data["image_size"], "colour" if data["channels"] == 3 else "grayscale"
    counts = data.get("counts", {})
    rows = [
        [escaped(name), *(f"{counts[split][place]:,}" for split in SPLITS)]
        for place, name in enumerate(result.classes[:MOST])
        if counts
    ]
    rows.append([f"all {len(result.classes)}", *(f"{data['sizes'][split]:,}" for split in SPLITS)])
    first = [f"The first {MOST} of {len(result.classes):,} classes."] if len(result.classes) > MOST else []
    left_out = {"excluded by a list": data["excluded"]} if "excluded" in data else {}
    left_out |= data.get("rejected", {})
    return [
        "## Data",
        "",
        f"`{data['source']}`: {side} x {side} pixels, {kind}.",
        *([f"Left out: {', '.join(f'{what} {n:,}' for what, n in left_out.items())}."] if left_out else []),
        *first,
        "",
        *_table(["class", *SPLITS], rows, numbers=(1, 2, 3)),
        *_shown(["examples"], "The first training images of each class"),
    ]


def _metrics(result: "Result", values: dict[str, Any]) -> list[str]:
    n = len(result.labels)
    rows = []
    for name in [*(name for name in TITLES if name in values), *(name for name in values if name not in TITLES)]:
        value = values[name]
        is_share = name in ("accuracy", "accuracy_untrained", "top5")
        rows.append(
            [f"`{name}`", f"{value:.6g}", _share(round(value * n), n) if is_share else "", TITLES.get(name, "")]
        )
    return ["## Test metrics", "", *_table(["metric", "value", "95 % interval", "what it is"], rows, numbers=(1,))]


def _confusion(result: "Result") -> list[str]:
    wrong = result.confusion - result.confusion.diag().diag()
    pairs = [(int(wrong[row, column]), row, column) for row, column in wrong.nonzero().tolist()]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
    total = result.confusion.sum(1)
    rows = [
        [escaped(result.classes[row]), escaped(result.classes[column]), f"{count:,}", f"{count / int(total[row]):.1%}"]
        for count, row, column in pairs[:MOST]
    ]
    more = [f"The {MOST} most frequent of {len(pairs):,} pairs.", ""] if len(pairs) > MOST else []
    table = (
        _table(["label", "called", "images", "of the label's"], rows, numbers=(2, 3))
        if rows
        else ["Nothing is confused."]
    )
    return ["## What is confused", *_shown(["confusion"], "Confusion matrix"), "", *more, *table]


def _classes(result: "Result", pictures: Sequence[str]) -> list[str]:
    worst = result.per_class.sort_values(["recall", "class"], kind="stable")[:MOST]
    rows = [
        [
            escaped(row["class"]),
            f"{row['correct']:,} of {row['total']:,}",
            f"{row['recall']:.3f}" if row["total"] else "",
            _share(int(row["correct"]), int(row["total"])) if row["total"] else "",
            f"{row['precision']:.3f}",
            f"{row['f1']:.3f}",
            "" if math.isnan(row["auroc"]) else f"{row['auroc']:.4f}",
        ]
        for row in worst.to_dict("records")
    ]
    worst_of = [f"The worst {MOST} of {len(result.classes):,} classes.", ""] if len(result.classes) > MOST else []
    columns = ["class", "right", "recall", "95 % interval", "precision", "F1", "AUROC"]
    shown = [name for name in ("curves", "reliability") if name in pictures]
    return ["## Classes", "", *worst_of, *_table(columns, rows, numbers=range(1, 7)), *_shown(shown, "")]


def _mistakes(result: "Result") -> list[str]:
    count = len(result.labels) - int(result.confusion.diag().sum())
    where = "`mistakes.html`, beside this file, shows them by what was confused; `predictions.csv` has every image."
    return ["## Mistakes", "", f"{count:,} of {len(result.labels):,}. {where}", *_shown(["mistakes"], "Mistakes")]


def _limits(result: "Result", values: dict[str, Any]) -> list[str]:
    said = [
        "An interval says what other test images of the same kind would give. Another seed differs, too: train several,"
        " and let `tools.compare` say whether a difference is real.",
        f"The net knows {len(result.classes)} classes, and calls any image one of these, also one of something else.",
    ]
    few = [name for name, n in zip(result.classes, result.per_class["total"], strict=True) if n < FEW]
    if few:
        said.append(
            f"Fewer than {FEW} test images, so that their figures say little: {listed(map(escaped, few), MOST)}."
        )
    if never := [name for name, n in zip(result.classes, result.per_class["predicted"], strict=True) if n == 0]:
        said.append(f"Never predicted: {listed(map(escaped, never), MOST)}.")
    if not result.is_probable:
        said.append("The loss makes no probabilities of the scores: they order classes, and are no measure of doubt.")
    elif "ece" in values:
        said.append(f"Confidence and accuracy differ by {values['ece']:.3f} in the mean (`ece`).")
    return ["## Limits", "", *(f"- {each}" for each in said)]


def _rebuilt(training: dict[str, Any], data: dict[str, Any]) -> list[str]:
    digests = [["weights", training["sha256"]], *([split, data["sha256"][split]] for split in SPLITS)]
    return [
        "## How to make it again",
        "",
        "In a clone at its commit, `make repro` prepares, trains and evaluates with the parameters below, and"
        " `dvc.lock` says whether every file is the same. `python -m tools.rebuild RUN` does so from a run in MLflow.",
        "",
        *_table(["what", "sha256"], [[what, f"`{digest}`"] for what, digest in digests]),
        "",
        "```yaml",
        *(
            f"{one_line(name)}: {_value(name, value)}"
            for name, value in sorted(flattened(training["params"]).items())
            if name not in NO_PART_OF_RESULT
        ),
        "```",
    ]


def _value(name: str, value: Any) -> str:
    """Return a param as JSON: what DVC takes for equal is, too, and no place outside of the repository is named."""
    if name in PATHS and Path(value).is_absolute():
        return '"outside of the repository"'
    return one_line(json.dumps(_plain(value), ensure_ascii=False, sort_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def escaped(name: str) -> str:
    """Return a name as Markdown that shows it as it is, in one line."""
    return SPECIAL.sub(r"\\\1", one_line(name))


def _share(hits: int, n: int) -> str:
    low, high = interval(hits, n)
    return f"{low:.4f} to {high:.4f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Return the lines of a table; columns of `numbers`, by their places, are set to the right."""
    rule = ["---:" if place in numbers else "---" for place in range(len(columns))]
    return [f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows]]


def _shown(names: Iterable[str], title: str) -> list[str]:
    return [line for name in names for line in ("", f"![{title or name}](pictures/{name}.png)")]

"""What a run made, part by part, beside what was made this time."""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from stages.base.errors import listed
from stages.base.files import sha256
from stages.base.instructions import cpu_model
from stages.base.processes import AUTO, thread_count
from stages.nets.weights import read_weights
from stages.tracking.params import as_logged, values
from stages.tracking.result import EVALUATION_TAG, WEIGHTS, WEIGHTS_TAG, ResultFiles
from tools.dvclock import as_yaml, digests_of, read_params
from tools.rebuild.record import Record
from tools.runs import EvaluatedRun, read_predictions

PREPARED = "prepared data"  # what one part is called


@dataclass(frozen=True)
class Part:
    """Something that a run has made, and what is different about it this time: "" if nothing."""

    name: str
    difference: str


def of_training(record: Record, files: ResultFiles) -> Iterator[Part]:
    """Yield each part of what prepare and train have made, and by how much it is not what the run has."""
    run, lock = record.run, as_yaml((files.root / "dvc.lock").read_bytes())
    now = as_logged(read_params(files.root / "params.yaml"))
    equal = {name for name, _ in values(now).items() & values(run.params).items()}
    others, were = ({name: text for name, text in each.items() if name not in equal} for each in (now, run.params))
    yield Part("params", _changes(others, were))
    read, had, recorded = (
        digests_of(of, kind) for kind, of in [("deps", lock), ("deps", record.lock), ("outs", record.lock)]
    )
    inputs = [path for path in sorted(had) if path not in recorded and had[path] != read.get(path)]
    yield Part("code and data that are read", listed(inputs))
    data = str(files.prepared.relative_to(files.root))
    yield Part(PREPARED, "" if read.get(data) == recorded.get(data) else "of another digest")
    yield Part(WEIGHTS, _weights(record, files.weights))
    history = pd.read_csv(files.history).set_index("epoch")
    rows = {f"{name} of epoch {epoch}": value for name in history for epoch, value in history[name].items()}
    had_rows = {f"{name} of epoch {epoch}": v for name in history for epoch, v in record.curve(str(name)).items()}
    yield Part("history", _changes(rows, had_rows))


def of_evaluation(run: EvaluatedRun, files: ResultFiles) -> Iterator[Part]:
    """Yield each part of what evaluate has made, and by how much it is not what the run has."""
    results = json.loads(files.results.read_text(encoding="utf-8"))
    metrics = {f"test/{name}": value for name, value in results.items() if name != "valid_accuracy"}
    yield Part("metrics", _changes(metrics, {name: run.metrics.get(name) for name in metrics}))
    yield Part("predictions", _predictions((files.plots / "predictions.csv").read_text(encoding="utf-8"), run))
    evaluation = files.digests[EVALUATION_TAG]
    yield Part("files of the evaluation", "" if evaluation == run.tags[EVALUATION_TAG] else "of another digest")


def reasons(record: Record) -> str:
    """Return what may be why: what is other than it was when the run was made."""
    before, tags = record.environment, record.run.tags
    threads = record.run.params.get("train.threads", AUTO)
    pairs = {
        "CPU": (tags.get("env.cpu"), cpu_model()),
        "Python": (tags.get("env.python"), platform.python_version()),
        "torch": (tags.get("env.torch"), version("torch")),
        "numpy": (tags.get("env.numpy"), version("numpy")),
        "threads": (tags.get("env.threads"), str(thread_count(threads if threads == AUTO else int(threads)))),
        "machine": (before.get("os"), platform.platform()),
    }
    texts = [f"{name} {was} (now {now})" for name, (was, now) in pairs.items() if was != now and was]
    return listed(texts)


def _changes(now: Mapping[str, object], before: Mapping[str, object]) -> str:
    """Return which values are others than before, and both."""
    names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
    return listed((f"{name}: {before.get(name)} before, {now.get(name)} now" for name in names), 5)


def _weights(record: Record, path: Path) -> str:
    tag = record.run.tags[WEIGHTS_TAG]
    if record.is_tidied:
        return "" if sha256(path) == tag else "of another digest"
    logged = record.artifact(f"{WEIGHTS}/{path.name}")
    if sha256(logged) != tag:
        return f"the file in the store is not the one of the run's {WEIGHTS_TAG}"
    if sha256(path) == tag:
        return ""
    now, before = (read_weights(each)[0] for each in (path, logged))
    if {name: tensor.shape for name, tensor in now.items()} != {name: tensor.shape for name, tensor in before.items()}:
        return "of other shapes"
    largest = max((now[name].double() - before[name].double()).abs().max().item() for name in now)
    return f"differ by up to {largest:.3g}" if largest else "equal, but not what is written with them"


def _predictions(text: str, run: EvaluatedRun) -> str:
    now, before = read_predictions(text), run.predictions
    if now.equals(before):
        return ""
    if now.shape != before.shape or list(now["source"]) != list(before["source"]):
        return "of other images"
    others = int((now["predicted"] != before["predicted"]).sum())
    largest = np.abs(now.iloc[:, 4:].to_numpy() - before.iloc[:, 4:].to_numpy()).max()
    return f"{others} of {len(now):,} images are of another class; probabilities differ by up to {largest:.3g}"

"""What stands in dvc.lock and params.yaml, today's and those of older commits."""

from pathlib import Path
from typing import Any

from stages.base.errors import InputError
from stages.base.params import flattened, load_params
from stages.base.yaml import read_yaml
from stages.tracking.result import ResultFiles

EVALUATE = ("python -m stages evaluate ", "python -m stages.evaluate ")  # the second in older commits


def as_yaml(content: bytes) -> dict[str, Any]:
    """Return the mapping that YAML holds, {} if it holds none."""
    try:
        values = read_yaml(content, "")
    except InputError:  # such as the marks of a merge
        values = None
    return values if isinstance(values, dict) else {}


def read_params(path: Path) -> dict[str, Any]:
    """Return the params of any commit by their dotted names, as they stand there if they are not today's."""
    try:
        return load_params(path).flat()
    except InputError:
        return flattened(as_yaml(path.read_bytes()))


def stages_of(lock: dict[str, Any]) -> dict[str, Any]:
    """Return the stages in dvc.lock, {} if it has none that can be read."""
    stages = lock.get("stages")
    return stages if isinstance(stages, dict) and all(isinstance(stage, dict) for stage in stages.values()) else {}


def arguments_of(lock: dict[str, Any]) -> list[str]:
    """Return weights, prepared set, history, results and plots, as on the command line of evaluate.

    Raises InputError if it has none.
    """
    if "evaluate" not in (stages := stages_of(lock)):
        raise InputError("dvc.lock has no evaluation")
    command = stages["evaluate"].get("cmd")
    start = next((start for start in EVALUATE if str(command).startswith(start)), None)
    words = str(command).removeprefix(start).split() if start else []
    if len(words) != 5:
        raise InputError(f"evaluate was another command than today's: {command}")
    return words


def weights_digest(lock: dict[str, Any]) -> str:
    """Return the digest that dvc.lock has of the weights that train wrote, "" if it has none."""
    outs = stages_of(lock).get("train", {}).get("outs", [])
    return next((_recorded(out) for out in outs if str(out["path"]).endswith(".safetensors")), "")


def data_digest(text: str) -> str:
    """Return the digest of the data that a .dvc file stands for."""
    [out] = as_yaml(text.encode())["outs"]
    return _recorded(out)


def files_of(lock: dict[str, Any], root: Path) -> ResultFiles:
    """Return the files of the result in dvc.lock, from `root` on. Raises InputError if it has none."""
    weights, prepared, history, results, plots = (root / argument for argument in arguments_of(lock))
    return ResultFiles(weights, prepared, history, results, plots, root)


def digests_of(lock: dict[str, Any], kind: str) -> dict[str, str]:
    """Return the digests of all "deps" or "outs" in dvc.lock by their paths."""
    entries = [entry for stage in stages_of(lock).values() for entry in stage.get(kind, [])]
    return {entry["path"]: _recorded(entry) for entry in entries}


def _recorded(entry: dict[str, Any]) -> str:
    """Return the digest of a dep or output; where its remote keeps versions, dvc.lock has those of a folder's files."""
    return str(entry.get("md5") or sorted((file["relpath"], file["md5"]) for file in entry.get("files", [])))

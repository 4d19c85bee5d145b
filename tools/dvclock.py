"""What stands in dvc.lock and params.yaml, today's and those of older commits."""

import re
from pathlib import Path
from typing import Any

from stages.base.errors import InputError
from stages.base.params import flattened, load_params
from stages.base.yaml import read_yaml
from stages.tracking.result import ResultFiles

# dvc.lock as DVC writes it: to read its YAML takes 0.1 s, and there may be thousands.
_STAGE = re.compile(r"^  (\w+):\n((?: {4}.*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}- path: (.+)\n((?: {6}.*\n)*)", re.MULTILINE)
_DIGEST = re.compile(r"^ {6}hash: md5\n {6}md5: ([0-9a-f]{32}(?:\.dir)?)$", re.MULTILINE)
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


def digests_in(text: str, kind: str) -> dict[str, dict[str, str]]:
    """Return of the stages in the text of a dvc.lock the digests of their "deps" or "outs" by their paths.

    It is "" where DVC 2 made it, or the remote keeps versions, and {} if the text is not as DVC writes it.
    """
    found: dict[str, dict[str, str]] = {}
    for name, stage in _STAGE.findall(text):
        section = re.search(rf"^ {{4}}{kind}:\n((?: {{4}}- .*\n| {{6}}.*\n)*)", stage, re.MULTILINE)
        entries = _ENTRY.findall(section[1]) if section else []
        found[name] = {path: "".join(_DIGEST.findall(about)) for path, about in entries}
    return found


def weights_digest(text: str) -> str:
    """Return the digest that the text of a dvc.lock has of the weights that train wrote, "" if it has none."""
    outs = digests_in(text, "outs").get("train", {})
    return next((digest for path, digest in outs.items() if path.endswith(".safetensors")), "")


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

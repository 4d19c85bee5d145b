"""States on disk: tensors in a safetensors file, all else as JSON in its metadata. Reading one runs nothing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stages.base.files import write_synced

METADATA = "repronet state"  # the one key of the file's metadata
# What reading a file can raise that is cut, or was written by something else.
UNREADABLE = (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError)


def write_state(path: Path, about: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a state, and JSON that says what it is `about`, to the disk: a power cut leaves the old file or the new.

    A state is of mappings, lists, tuples, tensors, numbers, texts and None. Raises TypeError for all else, and OSError.
    """
    tensors: dict[str, Tensor] = {}
    metadata = {"about": about, "state": _encoded(state, tensors)}
    content = save(tensors, {METADATA: json.dumps(metadata | {"digest": _digest(metadata, tensors)})})
    write_synced(path, content)


def read_about(path: Path) -> Any:
    """Return what a state is about, without its tensors. Raises UNREADABLE."""
    return _metadata(path)["about"]


def read_state(path: Path) -> Any:
    """Return a state. Raises UNREADABLE, also if it is not as it was written."""
    metadata = _metadata(path)
    with safe_open(path, framework="pt") as safe:
        names = safe.keys()
        tensors = {name: safe.get_tensor(name) for name in names}
    if metadata.pop("digest") != _digest(metadata, tensors):
        raise ValueError("it is not as it was written")
    return _decoded(metadata["state"], tensors)


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as safe:
        metadata: dict[str, Any] = json.loads((safe.metadata() or {})[METADATA])
    return metadata


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a state as JSON, and put its tensors into `tensors`, to which it refers. Raises TypeError for all else."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # Copied, since those of one memory would be refused.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[_encoded(key, tensors), _encoded(one, tensors)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(one, tensors) for one in value]}
    if isinstance(value, list):
        return [_encoded(one, tensors) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state of the type {type(value).__name__}")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what was encoded."""
    if isinstance(value, list):
        return [_decoded(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decoded(one, tensors) for one in content)
    return {_decoded(key, tensors): _decoded(one, tensors) for key, one in content}

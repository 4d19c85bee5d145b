"""Where a training stands, kept beside the project: one that was killed goes on, and ends with the same bits.

A checkpoint is found by its name, the digest of all that determines the result. Nothing of it is run, and one that is
cut, or not as it was written, is not used.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from stages.base import instructions
from stages.base.attempts import Attempt, next_attempt
from stages.base.errors import listed
from stages.base.experiment import home
from stages.base.files import sha256
from stages.base.locks import locked_if_free
from stages.base.params import NO_PART_OF_RESULT, RANDOM, WEIGHTS, TrainParams, flattened
from stages.base.text import say, warn
from stages.training.parallel import ALONE, Group
from stages.training.selection import rank_of
from stages.training.states import UNREADABLE, read_about, read_state, write_state

STAGES = Path(__file__).parents[1]
CODE = ("base", "batches", "nets", "train.py", "training")  # what a training runs of it, but for tracking
VERSION = 1  # of the files; one of another version is not used
SECONDS = (
    1.0  # between two checkpoints at the ends of epochs: to write one takes 2 ms of the Net's 30 an epoch, or more
)
CHANGE_NOTHING = {name.removeprefix("train.") for name in NO_PART_OF_RESULT}
VERSIONS = ("llvmlite", "numpy", "pandas", "safetensors", "torch", "torchvision")
SUFFIX, ATTEMPTS = ".safetensors", ".attempts"
FORGOTTEN_SECONDS = 30 * 86_400.0  # after which a checkpoint is removed


class Stateful(Protocol):
    """What has a state, as torch's nets, optimizers and schedules have."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass
class Standing:
    """How far a training has come."""

    epoch: int = 1  # the one that is going on
    batches: int = 0  # of it that are done
    lr: float = 0.0  # at its start
    rows: list[dict[str, float]] = field(default_factory=list)  # of the history: the epochs before it
    best: dict[str, float] = field(default_factory=dict)  # the row of the epoch whose weights are kept
    has_ended: bool = False

    def is_best(self, row: dict[str, float], monitor: str) -> bool:
        """Return whether the epoch of this row is better than all before, by the figure that is monitored."""
        return not self.best or rank_of(row, monitor) > rank_of(self.best, monitor)


class Checkpoint:
    """The checkpoint of one training; of one without a `file` nothing is kept."""

    attempt: Attempt | None = None  # at the training

    def __init__(
        self, file: Path | None, origin: Mapping[str, Any], output: Path, minutes: float, group: Group = ALONE
    ) -> None:
        """`origin` is what determines the result, by its names; `output` the file of the weights."""
        self._file, self._seconds, self._is_kept, self._group = file, 60 * minutes, True, group
        self._about: dict[str, Any] = {"version": VERSION, "origin": origin, "output": str(output)}
        self._written = time.monotonic()

    def resume(self, kept: Path, parts: Mapping[str, Stateful]) -> Standing:
        """Return where the training stands, with the state of its parts and the weights that it kept; else its start.

        The generators of the CPU and of GPUs have their states then, too. All of a group go on from what the first has.
        """
        state = self._read()
        if not self._group.is_alone:
            content = self._group.sent(self._file.read_bytes() if self._file and state else b"")
            if self._group.rank and content:
                file = kept.with_name(f"checkpoint{SUFFIX}")  # of this process alone, as all beside it
                file.write_bytes(content)
                state = read_state(file)
        if state is None:
            return Standing()
        standing = Standing(**state["standing"])
        for name, part in parts.items():
            _load(part, state["parts"][name])
        kept.write_bytes(bytes(state["kept"].numpy()))
        torch.set_rng_state(state["generators"]["cpu"])
        if self._group.is_alone:  # else they follow from the step, and each machine has its own number of GPUs
            for number, generator in enumerate(state["generators"]["gpus"]):
                torch.cuda.set_rng_state(generator, number)
        done = f"epoch {standing.epoch - 1}" + f" and {standing.batches} batches" * bool(standing.batches)
        say(f"goes on after {done}, where this training was interrupted")
        return standing

    def _read(self) -> Any:
        """Return what the file holds, None if there is none, or if it is of no use, which is said."""
        if self._file is None or not self._file.exists():
            return None
        try:
            about = read_about(self._file)
            if any(about[name] != self._about[name] for name in ("version", "origin")):
                raise ValueError("it is of another version, or another training")
            state = read_state(self._file)
            Standing(**state["standing"])
        except UNREADABLE as error:
            warn(f"warning: the checkpoint {self._file} is not used: {error}. The training starts from the beginning.")
            return None
        return state

    def after_batch(self, standing: Standing, kept: Path, parts: Mapping[str, Stateful]) -> None:
        """Write a checkpoint if the last is older than the minutes."""
        if time.monotonic() - self._written > self._seconds:
            self._write(standing, kept, parts)

    def after_epoch(self, standing: Standing, kept: Path, parts: Mapping[str, Stateful]) -> None:
        """Write a checkpoint, unless the last is hardly older than the writing takes."""
        if time.monotonic() - self._written > min(SECONDS, self._seconds):
            self._write(standing, kept, parts)

    def remove(self) -> None:
        """Remove it: the training has come to its end."""
        if self._file is not None:
            with suppress(OSError):  # the disk can be read-only by now
                self._file.unlink(missing_ok=True)
                # The last: what is killed before is this training when it is repeated, and not another.
                self._file.with_suffix(ATTEMPTS).unlink(missing_ok=True)

    def _write(self, standing: Standing, kept: Path, parts: Mapping[str, Stateful]) -> None:
        if self._file is None or not self._is_kept:
            return
        state = {
            "standing": asdict(standing),
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "kept": torch.frombuffer(bytearray(kept.read_bytes()), dtype=torch.uint8),
            "generators": {
                "cpu": torch.get_rng_state(),
                "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            },
        }
        try:
            write_state(self._file, self._about, state)
        except (OSError, TypeError) as error:
            warn(f"warning: no checkpoint can be kept of this training: {error}. It goes on without.")
            self._is_kept = False
        self._written = time.monotonic()


def origin(params: TrainParams, prepared: Path, device: torch.device) -> dict[str, Any]:
    """Return all that determines the bits of a training, by its names."""
    files = [path for name in CODE for path in sorted((STAGES / name).rglob("*.py")) or [STAGES / name]]
    versions = (*VERSIONS, "timm") if params.net.name.startswith("timm/") else VERSIONS
    is_portable = params.determinism == instructions.PORTABLE and device.type == "cpu"
    return {
        "params": json.loads(params.model_dump_json(exclude=CHANGE_NOTHING)),
        "data": sha256(prepared / "dataset.json", prepared / "manifest.csv"),
        "init_from": "" if params.init_from == RANDOM else sha256(WEIGHTS / params.init_from),
        "code": {str(path.relative_to(STAGES.parent)): sha256(path) for path in files},
        "versions": {name: version(name) for name in versions},
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "instructions": {name: os.environ.get(name) for name in instructions.LIMITS},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": "" if is_portable else instructions.cpu_model(),
    }


@contextmanager
def checkpoint(origin: Mapping[str, Any], output: Path, minutes: float, group: Group = ALONE) -> Iterator[Checkpoint]:
    """Yield the checkpoint of the training with this `origin`, and remove it at the end; after an error it stays.

    Another process with the same training has the file, if it is running; this one then keeps none. Of a group the
    first process writes it.
    """
    if group.rank:
        yield Checkpoint(None, origin, output, minutes, group)
        return
    folder = home(os.environ) / "checkpoints"
    origin = json.loads(json.dumps(origin))  # as it is read again
    file = folder / f"{hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]}{SUFFIX}"
    found = nothing = Checkpoint(None, origin, output, minutes, group)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _look_at_others(file, origin, output)
            if stack.enter_context(locked_if_free(file)):
                found = Checkpoint(file, origin, output, minutes, group)
                found.attempt = next_attempt(file.with_suffix(ATTEMPTS))
            else:
                say("the same training is going on in another process, so this one keeps no checkpoint")
        except OSError as error:
            warn(
                f"warning: no checkpoint can be kept of this training: {error.strerror}: {folder}. It goes on without."
            )
            found = nothing
        yield found
        found.remove()


def _look_at_others(file: Path, origin: Mapping[str, Any], output: Path) -> None:
    """Say why the latest checkpoint for this output is not used, if it is another training's; remove forgotten ones."""
    others: list[tuple[float, dict[str, Any]]] = []
    for path in file.parent.iterdir():
        with suppress(*UNREADABLE):  # another process may remove it meanwhile
            written = path.stat().st_mtime
            if time.time() - written > FORGOTTEN_SECONDS:
                path.unlink()
            elif path.suffix == SUFFIX and (about := read_about(path))["output"] == str(output):
                others.append((written, flattened(about["origin"])))
    if others and not file.exists():
        theirs, ours = max(others, key=itemgetter(0))[1], flattened(dict(origin))
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        say(f"not going on with the interrupted training of {output}: different now: {listed(names)}")


def _load(part: Stateful, state: dict[str, Any]) -> None:
    if not isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    # Not load_state_dict: some of torchvision's models, mnasnet for one, want more there than their tensors.
    with torch.no_grad():
        for name, tensor in part.state_dict().items():
            tensor.copy_(state[name])

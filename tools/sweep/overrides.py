"""Overrides of params.yaml in Hydra's grammar, as `dvc exp run -S` takes them: values, lists of values, intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep, Sweep

from stages.base.errors import InputError
from stages.base.params import Params, flattened, load_params
from stages.base.yaml import read_yaml
from stages.sources import loading
from stages.train import check_params

GRAMMAR = "VALUE | VALUE,VALUE,… | range(START,STOP) | interval(LOW,HIGH) | int(…) and tag(log,…) around an interval"


@dataclass(frozen=True)
class Interval:
    """What a search draws numbers from: both ends included, whole numbers if the ends are int."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Axis:
    """One override: a key and its values as text, one where it is fixed, none where they come from an interval."""

    key: str  # with the + that adds a key
    values: tuple[str, ...]
    interval: Interval | None = None

    @property
    def name(self) -> str:
        return self.key.lstrip("+")


def parse(overrides: Sequence[str]) -> list[Axis]:
    """Return an axis for each override. Raises InputError for what cannot be read, and for a key given twice."""
    axes = [_axis(text) for text in overrides]
    for axis in axes:
        if not axis.interval and len(set(axis.values)) != max(1, len(axis.values)):
            raise InputError(f"-S {axis.name}: {', '.join(axis.values) or 'no value'}; different values are accepted")
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"-S {name}: given {names.count(name)} times; several values go into one: {name}=1,2")
    return axes


def _axis(text: str) -> Axis:
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import HydraException

    try:
        [override] = to_hydra_overrides([text])
        value = override.value()
    except HydraException as error:
        raise InputError(
            f"-S {text!r} cannot be read: {str(error).splitlines()[0]}; accepted: KEY={GRAMMAR}"
        ) from error
    if override.is_delete() or "=" not in text:
        raise InputError(f"-S {text!r}: a key cannot be removed in a sweep; accepted: KEY={GRAMMAR}")
    key = override.get_key_element()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if low is None or high is None or low >= high or (log and low <= 0):
            raise InputError(f"-S {text!r}: an interval goes from low to high, and from above 0 with tag(log, …)")
        return Axis(key, (), Interval(low, high, log))
    if not override.is_sweep_override():
        return Axis(key, (text.split("=", 1)[1],))
    if isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list):
        raise InputError(f"-S {text!r}: an interval or a range stands alone; accepted: KEY={GRAMMAR}")
    if isinstance(value, ChoiceSweep | RangeSweep) and not value.shuffle:
        return Axis(key, tuple(override.sweep_string_iterator()))
    raise InputError(f"-S {text!r}: shuffled values and globs are not for a sweep; accepted: KEY={GRAMMAR}")


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Return every combination of the axes' values, {key: value}; the last axis varies fastest."""
    return [
        dict(zip((axis.key for axis in axes), values, strict=True)) for values in product(*(a.values for a in axes))
    ]


def _added(text: str) -> list[str]:
    """Return what adds the keys of an override KEY={…}, which cannot bring new ones: +KEY.NAME=VALUE for each."""
    from dvc.utils.hydra import to_hydra_overrides

    [override] = to_hydra_overrides([text])
    value = override.value()
    key = override.get_key_element().lstrip("+")
    return [f"+{key}.{name}={one}" for name, one in flattened(value).items()] if isinstance(value, dict) else []


def check(overrides: Sequence[str], text: str | None = None) -> Params:
    """Return the params of `text`, by default what params.yaml holds, with `overrides`, as DVC would change it.

    Raises InputError if a stage would refuse them, as far as that can be told without the data.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    given = " ".join(f"-S {override}" for override in overrides)
    content = Path("params.yaml").read_bytes() if text is None else text.encode()
    read_yaml(content, "params.yaml")  # which DVC would read without a limit
    with TemporaryDirectory() as folder:
        changed = Path(folder) / "params.yaml"
        changed.write_bytes(content)
        try:
            apply_overrides(changed, list(overrides))
            params = load_params(changed)
        except DvcException as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            instead = " ".join(f"-S {line}" for text in overrides for line in _added(text)) or "+KEY=VALUE"
            raise InputError(f"{given}: {reason} (a key that params.yaml lacks is added with {instead})") from error
        except InputError as error:
            raise InputError(str(error).replace(str(changed), f"params.yaml with {given}")) from error
    loading.check_name(params.prepare.source)
    check_params(params.train, params.prepare.channels or 1, torch.device("cpu"))
    return params

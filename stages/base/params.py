"""params.yaml, parsed once into frozen typed objects. What each parameter means stands beside it there."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from stages.base.errors import InputError, lines, unknown
from stages.base.instructions import Level
from stages.base.processes import AUTO, Threads
from stages.base.yaml import read_yaml

SEED = "train.seed"  # the parameter in which repetitions of a training differ
NOTHING = Path("data/none")  # prepare.path where nothing of the user's is read: an empty file, for DVC to depend on
WEIGHTS = Path("data/weights")  # the folder of train.init_from
RANDOM = "none"  # train.init_from where the first weights are random: an empty file there

# They change no output: neither weights nor what is measured of them.
NO_PART_OF_RESULT = ("train.workers", "train.checkpoint_minutes", "train.log_steps", "train.log_system")

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _threads(value: Any) -> Any:
    if value != AUTO and (type(value) is not int or value < 1):
        raise PydanticCustomError("threads", "a whole number above 0, or auto")
    return value


def _freeze(value: Any) -> Any:
    if value not in ("none", "all_but_head") and (type(value) is not int or value < 1):
        raise PydanticCustomError("freeze", "none, all_but_head, or for how many epochs, a whole number above 0")
    return value


# {class name: {argument: value}}: the arguments of a class stay in place while another is tried.
Arguments = dict[str, dict[str, Any]]
# [{class name: {argument: value}}, ...]; a name alone stands for one without arguments.
TransformList = list[str | dict[str, dict[str, Any]]]


class Section(BaseModel):
    """A mapping in params.yaml. Its fields are the keys, and an unknown, missing or mistyped one is an error."""

    # No field has a default: params.yaml is the only place that gives values, so a missing key is an error.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CsvParams(Section):
    """How the table of `prepare.source: csv` is read: its file name in `prepare.path`, and the names of its columns."""

    file: str
    image: str
    folder: str | None
    suffix: str | None
    label: str
    split: str | None


class PrepareParams(Section):
    """Where images come from, and what they are made into. `image_size` is in pixels; fractions are of each class."""

    source: str
    path: Annotated[str, Field(min_length=1)]
    csv: CsvParams
    classes: list[str] | None
    channels: Literal[1, 3] | None
    sixteen_bits: Annotated[int, Field(ge=1, le=16)] | None
    image_size: Positive | None
    fit: Literal["crop", "pad", "stretch"]
    max_pixels: Positive
    on_bad: Literal["error", "skip"]
    valid_fraction: Fraction
    test_fraction: Fraction
    exclude: Annotated[str, Field(min_length=1)]
    limit: Positive | None
    seed: Seed


class NamedParams(Section):
    """A class of torch, or a net, by name; arguments stand under the names that they are for."""

    name: str
    arguments: Arguments


class OptimizerParams(NamedParams):
    """An optimizer of torch.optim; an `lr` of None is that optimizer's own default."""

    lr: Annotated[float, Field(gt=0)] | None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    decay_on: Literal["all", "weights"]


class TransformParams(Section):
    """Transforms of torchvision, in their order: for the training images, and for all that is evaluated."""

    train: TransformList
    eval: TransformList


class TrainParams(Section):
    """What the training does. `early_stopping` counts epochs; None switches off what is off by default."""

    seed: Seed
    epochs: Positive
    batch_size: Positive
    accumulate: Positive
    balance: Literal["none", "loss", "sampling"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[Threads, PlainValidator(_threads)]
    processes: Positive
    determinism: Level
    workers: Annotated[int, Field(ge=0)]
    checkpoint_minutes: Annotated[float, Field(gt=0)]
    log_steps: Annotated[int, Field(ge=0)]
    log_system: Annotated[float, Field(ge=0)]
    init_from: Annotated[str, Field(min_length=1)]
    new_head: bool
    freeze: Annotated[str | int, PlainValidator(_freeze)]
    normalise: Literal["data", "imagenet", "half", "none"]
    net: NamedParams
    loss: NamedParams
    optimizer: OptimizerParams
    schedule: NamedParams
    warmup_epochs: Annotated[int, Field(ge=0)]
    transforms: TransformParams
    clip_norm: Annotated[float, Field(gt=0)] | None
    monitor: Literal["accuracy", "loss", "macro_f1", "auroc"]
    early_stopping: Positive | None
    overfit: Positive | None
    ema_decay: Fraction | None
    precision: Literal["float32", "bfloat16"]
    calibrate: bool


class EvaluateParams(Section):
    """How the test metrics are computed."""

    calibration_bins: Positive


class Params(Section):
    """All of params.yaml, a section a stage."""

    prepare: PrepareParams
    train: TrainParams
    evaluate: EvaluateParams

    @property
    def inputs(self) -> list[Path]:
        """What the stages read besides code: the data, which of them are left out, and the weights to start from."""
        return [Path(self.prepare.path), Path(self.prepare.exclude), WEIGHTS / self.train.init_from]

    def flat(self) -> dict[str, Any]:
        """Return {"train.optimizer.name": "SGD", ...}: the keys of params.yaml, dotted."""
        return flattened(self.model_dump())


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `values` with the keys of nested mappings dotted; an empty mapping stays {}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read params.yaml. Raises InputError that names every unknown, missing, mistyped or out-of-range key."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    values = read_yaml(content, str(path))
    return validated(Params, values, "", str(path))


S = TypeVar("S", bound=Section)


def validated(kind: type[S], values: Any, where: str, title: str = "") -> S:
    """Return `values` as a section that stands at `where` in params.yaml, a dotted name.

    Raises InputError that names every unknown, missing, mistyped or out-of-range key, under a `title`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_explain(kind, where, problem) for problem in error.errors()]
        head = f"{title or where} has {len(problems)} error{'s' * (len(problems) > 1)}:"
        raise InputError("\n".join([head, *lines(problems)])) from error


def _explain(kind: type[Section], where: str, problem: Any) -> str:
    """Return one line for one of pydantic's error records."""
    location = [str(part) for part in problem["loc"]]
    where, what = ".".join(filter(None, [where, *location])) or "the file", problem["type"]
    if what == "missing":
        return f"{where}: missing"
    if what == "extra_forbidden":
        return f"{where}: unknown key{unknown(location[-1], _keys(kind, location[:-1]))}"
    if what == "model_type":
        return f"{where}: {problem['input']!r}, should be a section with the keys {', '.join(_keys(kind, location))}"
    return f"{where}: {problem['input']!r}, should be {problem['msg'].removeprefix('Input should be ')}"


def _keys(kind: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that the section at `location` of such a one has."""
    for part in location:
        annotation = kind.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        kind = annotation
    return list(kind.model_fields)

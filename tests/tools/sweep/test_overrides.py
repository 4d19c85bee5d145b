"""Overrides as a sweep reads them."""

import pytest

from stages.base.errors import InputError
from tests.conftest import ROOT
from tools.sweep.overrides import Axis, Interval, check, grid, parse


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("train.epochs=3", Axis("train.epochs", ("3",))),
        ("train.optimizer.lr=null,1e-2", Axis("train.optimizer.lr", ("null", "0.01"))),
        ("train.optimizer.name=SGD,Adam", Axis("train.optimizer.name", ("SGD", "Adam"))),
        ("train.net.arguments.Net.widths=[8],[16,32]", Axis("train.net.arguments.Net.widths", ("[8]", "[16,32]"))),
        ("train.seed=range(0,3)", Axis("train.seed", ("0", "1", "2"))),
        ("train.seed=choice(4,5)", Axis("train.seed", ("4", "5"))),
        ("+train.optimizer.arguments.SGD.momentum=0.8", Axis("+train.optimizer.arguments.SGD.momentum", ("0.8",))),
        ("a=interval(0,0.5)", Axis("a", (), Interval(0, 0.5, log=False))),
        ("a=tag(log,interval(1e-4,1))", Axis("a", (), Interval(1e-4, 1, log=True))),
        ("a=int(interval(5,30))", Axis("a", (), Interval(5, 30, log=False))),
    ],
)
def test_an_override_is_an_axis(override: str, axis: Axis) -> None:
    assert parse([override]) == [axis]


def test_whole_numbers_are_told_from_others() -> None:
    [whole, real] = parse(["a=int(interval(5,30))", "b=interval(5,30)"])
    assert whole.interval is not None
    assert real.interval is not None
    assert (type(whole.interval.low), type(real.interval.low)) == (int, float)


def test_a_grid_is_every_combination() -> None:
    assert grid(parse(["a=1,2", "b=x", "c=3,4"])) == [
        {"a": "1", "b": "x", "c": "3"},
        {"a": "1", "b": "x", "c": "4"},
        {"a": "2", "b": "x", "c": "3"},
        {"a": "2", "b": "x", "c": "4"},
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a=(("], r"-S 'a=\(\(' cannot be read: .*; accepted: KEY=VALUE \| VALUE,VALUE"),
        (["a"], "-S 'a' cannot be read"),
        (["~a"], "-S '~a': a key cannot be removed"),
        (["a=glob(*)"], r"-S 'a=glob\(\*\)'"),
        (["a=shuffle(1,2)"], "shuffled values and globs are not for a sweep"),
        (["a=0,1,0"], "-S a: 0, 1, 0; different values are accepted"),
        (["a=range(0,0)"], "-S a: no value; different values are accepted"),
        (["a=1", "+a=2"], "-S a: given 2 times"),
        (["a=interval(2,1)"], "from low to high"),
        (["a=interval(1,2),3"], r"-S 'a=interval\(1,2\),3': an interval or a range stands alone; accepted: KEY="),
        (["a=3,range(1,2)"], "stands alone"),
        (["a=tag(log,interval(0,1))"], "from above 0"),
    ],
)
def test_what_cannot_be_read_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(overrides)


def test_checked_overrides_are_applied_as_dvc_applies_them() -> None:
    params = check(
        ["train.seed=3", "train.net.arguments.Net.widths=[4,8]", "+train.optimizer.arguments.SGD.momentum=0.5"]
    )
    assert (params.train.seed, params.train.net.arguments["Net"]["widths"]) == (3, [4, 8])
    assert params.train.optimizer.arguments == {"SGD": {"momentum": 0.5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", r"-S train\.epoch=1: Could not override 'train\.epoch'\. .* added with \+KEY=VALUE"),
        (
            "train.loss.arguments={CrossEntropyLoss: {label_smoothing: 0.1}}",
            r"is added with -S \+train\.loss\.arguments\.CrossEntropyLoss\.label_smoothing=0\.1\)",
        ),
        ("+train.epoch=1", r"train\.epoch: unknown key \(did you mean epochs\?\)"),
        ("train.epochs=x", r"params\.yaml with -S train\.epochs=x has 1 error:\n  train\.epochs: 'x', should be"),
        ("train.epochs=0", r"train\.epochs: 0, should be greater than 0"),
        ("train.optimizer.name=Sgd", r"train\.optimizer\.name: 'Sgd' is unknown \(did you mean SGD\?\)"),
        ("train.loss.name=MSE", r"train\.loss\.name: 'MSE' is unknown"),
        ("train.schedule.name=Step", r"train\.schedule\.name: 'Step' is unknown"),
        ("train.optimizer.name=SparseAdam", r"train\.optimizer\.name: 'SparseAdam' cannot be used: it takes sparse"),
        ("+train.optimizer.arguments.SGD.momentun=0.9", r"SGD\.momentun: .*\(did you mean momentum\?\)"),
        ("+train.schedule.arguments.OneCycleLR.pct_start=2", "OneCycleLR refuses"),
        ("train.net.name=resnet19", r"train\.net\.name: 'resnet19' is unknown \(did you mean resnet18 or "),
        ("train.net.arguments.Net.kernel=-1", r"train\.net\.arguments\.Net\.kernel: -1, should be greater than 0"),
        ("train.transforms.train=[RandomFlip]", r"train\.transforms\.train: 'RandomFlip' is unknown"),
        ("train.transforms.eval=[RandomCrop]", r"train\.transforms\.eval: RandomCrop draws numbers"),
    ],
)
def test_what_a_stage_would_refuse_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check([override])

from pathlib import Path

import pytest

from stages.base.errors import InputError
from stages.base.params import Params, load_params
from tests.conftest import ROOT, YAML_READER, params_with

TEXT = (ROOT / "params.yaml").read_text()


def load_with(tmp_path: Path, old: str, new: str) -> Params:
    assert TEXT.count(old) == 1
    (tmp_path / "params.yaml").write_text(TEXT.replace(old, new))
    return load_params(tmp_path / "params.yaml")


def test_committed_params_are_read() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.prepare.source == "digits"
    assert params.train.net.arguments["Net"]["widths"] == [32]
    assert params.train.optimizer.lr is None


def test_flat_names_are_the_keys_of_the_file() -> None:
    flat = load_params(ROOT / "params.yaml").flat()
    assert flat["train.net.arguments.Net.kernel"] == 5
    assert flat["train.optimizer.arguments"] == {}
    for name in flat:
        value = YAML_READER.load(TEXT)
        for part in name.split("."):
            value = value[part]
        assert value == flat[name]


def test_nested_arguments_are_flattened() -> None:
    flat = params_with({"train.optimizer.arguments": {"SGD": {"momentum": 0.8}}}).flat()
    assert flat["train.optimizer.arguments.SGD.momentum"] == 0.8
    assert "train.optimizer.arguments" not in flat


def test_exponents_are_numbers_as_in_dvc(tmp_path: Path) -> None:
    assert load_with(tmp_path, "lr: null ", "lr: 1e-3 ").train.optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 30 ", "  epoch: 30 ", r"train\.epochs: missing"),
        (
            "  epochs: 30 ",
            "  epoch: 30 ",
            r"train\.epoch: unknown key \(did you mean epochs\?\); accepted: seed, ",
        ),
        ("  epochs: 30 ", "  epochs: thirty ", r"train\.epochs: 'thirty', should be a valid integer"),
        ("  epochs: 30 ", "  epochs: 2.5 ", r"train\.epochs: 2\.5, should be a valid integer"),
        ("  epochs: 30 ", "  epochs: true ", r"train\.epochs: True, should be a valid integer"),
        ("  epochs: 30 ", "  epochs: 0 ", r"train\.epochs: 0, should be greater than 0"),
        ("  valid_fraction: 0.1 ", "  valid_fraction: 1.0 ", r"prepare\.valid_fraction: 1\.0, should be less than 1"),
        ("  processes: 1 ", "  processes: 0 ", r"train\.processes: 0, should be greater than 0"),
        ("  processes: 1 ", "  processes: auto ", r"train\.processes: 'auto', should be a valid integer"),
        ("  threads: 2 ", "  threads: 0 ", r"train\.threads: 0, should be a whole number above 0, or auto"),
        ("  threads: 2 ", "  threads: all ", r"train\.threads: 'all', should be a whole number above 0, or auto"),
        ("  threads: 2 ", "  threads: true ", r"train\.threads: True, should be a whole number above 0, or auto"),
        ("  device: auto ", "  device: tpu ", r"train\.device: 'tpu', should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("  freeze: none ", "  freeze: 0 ", r"train\.freeze: 0, should be none, all_but_head, or for how many epochs"),
        ("  freeze: none ", "  freeze: head ", r"train\.freeze: 'head', should be none, all_but_head, or"),
        ("  normalise: data ", "  normalise: 0.5 ", r"train\.normalise: 0\.5, should be 'data', 'imagenet', 'half' or"),
        ("  accumulate: 1 ", "  accumulate: 0 ", r"train\.accumulate: 0, should be greater than 0"),
        ("  log_system: 0 ", "  log_system: -1 ", r"train\.log_system: -1, should be greater than or equal to 0"),
        ("  log_system: 0 ", "  log_system: yes ", r"train\.log_system: 'yes', should be a valid number"),
        ("exclude: data/excluded.csv", "exclude: null", r"prepare\.exclude: None, should be a valid string"),
        ("exclude: data/excluded.csv", "exclude: ''", r"prepare\.exclude: '', should .*at least 1 character"),
        (
            "  warmup_epochs: 0 ",
            "  warmup_epochs: -1 ",
            r"warmup_epochs: -1, should be greater than or equal to 0",
        ),
        ("layer_decay: null ", "layer_decay: 1.5 ", r"optimizer\.layer_decay: 1\.5, should be less than or equal to 1"),
        ("decay_on: all ", "decay_on: none ", r"train\.optimizer\.decay_on: 'none', should be 'all' or 'weights'"),
        ("lr: null ", "lr: .inf ", r"train\.optimizer\.lr: inf, should be a finite number"),
        (
            "    arguments: {}        # by class name, e.g. -S +train.optimizer",
            "    arguments: 3  # {SGD",
            "should be a valid dictionary",
        ),
        ("evaluate:\n  calibration_bins: 15", "evaluate: 15", r"evaluate: 15, should be a section with the keys calib"),
        ("prepare:\n", "prepare: [\n", "is not YAML"),
        ("  epochs: 30 ", "  epochs: 30\n  epochs: 40 ", "is not YAML: .*duplicate key"),
    ],
)
def test_wrong_params_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_with(tmp_path, old, new)


def test_an_empty_file_names_the_sections(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(InputError, match="the file: None, should be a section with the keys prepare, train, evaluate"):
        load_params(tmp_path / "params.yaml")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: No such file"):
        load_params(tmp_path / "params.yaml")

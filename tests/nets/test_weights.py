import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stages.base.errors import InputError
from stages.nets import vision
from stages.nets.build import build_net, initial_net, net_spec
from stages.nets.net import Net
from stages.nets.weights import Description, load_pretrained, load_weights, read_weights, save_weights

DESCRIPTION = Description(
    net=net_spec("Net", {"Net": {"bias_start": 1.0}}, n_classes=3, channels=1, image_size=8),
    seed=7,
    classes=["a", "b", "c"],
    mean=[0.5],
    std=[0.25],
    transforms=[],
    epoch=2,
    valid_accuracy=0.9,
    valid_loss=0.3,
    decoding={"channels": 1, "size": 8, "fit": "crop", "max_pixels": 100, "white": 255},
)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {name: tensor * 2 for name, tensor in DESCRIPTION.untrained().state_dict().items()}


def test_what_is_saved_is_loaded(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_weights(tmp_path / "net.safetensors", weights, DESCRIPTION)
    net, description = load_weights(tmp_path / "net.safetensors")
    assert description == DESCRIPTION
    assert not net.training
    assert isinstance(net, Net)
    assert net.output == "relu"
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_untrained_is_the_net_before_the_first_step() -> None:
    expected = initial_net(DESCRIPTION.net, 7).state_dict()
    assert torch.equal(expected["fc1.bias"], torch.ones(3))
    torch.rand(5)
    for name, tensor in DESCRIPTION.untrained().state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_equal_weights_give_equal_bytes(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    for i in range(20):  # an order that is random would show
        save_weights(tmp_path / f"{i}", dict(sorted(weights.items(), reverse=i % 2 == 0)), DESCRIPTION)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(20)}) == 1


def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["fc1.weight"] = torch.zeros(3, 100)
    weights["fc2.bias"] = weights.pop("fc1.bias")
    save_weights(tmp_path / "net", weights, DESCRIPTION)
    with pytest.raises(InputError) as caught:
        load_weights(tmp_path / "net")
    assert str(caught.value).splitlines()[1:] == [
        "  fc1.bias: the net has (3,), the file none",
        "  fc1.weight: the net has (3, 128), the file (3, 100)",
        "  fc2.bias: the net has none, the file (3,)",
    ]


def test_files_of_others(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "plain")
    save_file(weights, tmp_path / "other", metadata={"repronet": json.dumps({"net": {}})})
    torch.save(weights, tmp_path / "pickle")
    (tmp_path / "cut").write_bytes((tmp_path / "plain").read_bytes()[:-8])
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (tmp_path / "empty").touch()
    for name, message in [
        ("plain", "does not say which net"),
        ("other", "does not say what its weights are"),
        ("pickle", "does not say which net"),
        ("cut", "cannot be read as safetensors"),
        ("huge", "cannot be read as safetensors"),
        ("empty", "is neither safetensors nor a state dict"),
        ("absent", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
    ]:
        with pytest.raises(InputError, match=message):
            load_weights(tmp_path / name)


def test_descriptions_of_earlier_versions_are_read_and_later_ones_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    content = asdict(DESCRIPTION)
    assert content["version"] == 3
    later = {"decoding", "temperature", "is_calibrated"}
    unsaid = {"first": {"version", "used"} | later, "second": {"version"} | later, "third": later}
    for version, names in unsaid.items():
        earlier = {name: value for name, value in (content | {"version": 1}).items() if name not in names}
        save_file(weights, tmp_path / version, metadata={"repronet": json.dumps(earlier)})
        _, found = load_weights(tmp_path / version)
        assert found == replace(
            DESCRIPTION, used=earlier.get("used", {}), decoding={}, version=earlier.get("version", DESCRIPTION.version)
        )
    save_file(weights, tmp_path / "later", metadata={"repronet": json.dumps(content | {"version": 4, "more": 1})})
    with pytest.raises(InputError, match="later is of version 4, and this code reads up to 3: take the later code"):
        load_weights(tmp_path / "later")


@pytest.mark.parametrize(
    "write",
    [
        lambda weights, path: save_file(weights, path),
        lambda weights, path: torch.save(weights, path),
        lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
        lambda weights, path: torch.save({"state_dict": weights, "epoch": 3}, path),
        lambda weights, path: torch.save({f"module.{name}": weights[name] for name in weights}, path),
        lambda weights, path: torch.save({name: nn.Parameter(tensor) for name, tensor in weights.items()}, path),
        lambda weights, path: save_weights(path, weights, DESCRIPTION),
    ],
)
def test_a_training_starts_from_weights_of_any_kind(
    tmp_path: Path, weights: dict[str, torch.Tensor], write: Callable[[dict[str, torch.Tensor], Path], None]
) -> None:
    (tmp_path / "sub").mkdir()
    write(weights, tmp_path / "sub/weights")
    net = DESCRIPTION.untrained()
    load_pretrained(net, DESCRIPTION.net, tmp_path, "sub/weights", new_head=False)
    assert net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_new_head_is_left_and_nothing_else(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, tmp_path / "three")
    shape = DESCRIPTION.net | {"n_classes": 5}
    net, random = initial_net(shape, 1), initial_net(shape, 1).state_dict()
    with pytest.raises(InputError) as caught:
        load_pretrained(net, shape, tmp_path, "three", new_head=False)
    assert str(caught.value).splitlines() == [
        f"train.init_from: the weights in {tmp_path / 'three'} do not fit the net:",
        "  fc1.bias: the net has (5,), the file (3,)",
        "  fc1.weight: the net has (5, 128), the file (3, 128)",
        "With train.new_head: true, the last layer need not fit.",
    ]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, random[name]), "what does not fit changes nothing"

    load_pretrained(net, shape, tmp_path, "three", new_head=True)
    state = net.state_dict()
    assert torch.equal(state["conv1.weight"], weights["conv1.weight"])
    assert torch.equal(state["conv1.bias"], weights["conv1.bias"])
    assert torch.equal(state["fc1.weight"], random["fc1.weight"])
    assert torch.equal(state["fc1.bias"], random["fc1.bias"])

    torch.save(weights | {"conv1.bias": torch.zeros(4)}, tmp_path / "narrow")
    with pytest.raises(InputError, match=r"conv1\.bias: the net has \(32,\), the file \(4,\)$"):
        load_pretrained(net, shape, tmp_path, "narrow", new_head=True)


class Code:
    """What a malicious file holds: its reading by plain pickle makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return Path.touch, (self.made,)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # even where the user's shell allows it
    made, folder = tmp_path / "made", tmp_path / "weights"
    folder.mkdir()
    (folder / "plain").write_bytes(pickle.dumps(Code(made)))
    torch.save({"fc1.weight": Code(made)}, folder / "zip")
    torch.save(nn.Linear(2, 2), folder / "module")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script")
    for name in ("plain", "zip", "module", "script"):
        with pytest.raises(InputError, match=r"train\.init_from: .* Nothing in it has been run\."):
            load_pretrained(DESCRIPTION.untrained(), DESCRIPTION.net, folder, name, new_head=True)
    assert not made.exists()
    pickle.loads((folder / "plain").read_bytes())
    assert made.exists(), "it would have been made"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict, alone or under 'state_dict', but: list"),
        ({}, "holds no state dict, .*, but: nothing"),
        ({"model": {"a": torch.zeros(1)}, "epoch": 3}, "holds no state dict, .*, but: model, epoch"),
        (torch.zeros(3), "holds no state dict, .*, but: Tensor"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "file")


def test_weights_to_start_from_stay_in_their_folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(weights, tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    for name, message in [
        ("../outside", "is outside .*, the one folder of weights that DVC watches"),
        (str(tmp_path / "outside"), "is outside .*, the one folder of weights that DVC watches"),
        ("link", "is outside .*, the one folder of weights that DVC watches"),
        ("absent", "'absent' is no file in .*; there: link"),
        ("", "'' is no file in"),
        (".", "'.' is no file in"),
        ("a\0b", "cannot be a file's name: embedded null byte"),
    ]:
        with pytest.raises(InputError, match=f"train.init_from: .*{message}"):
            load_pretrained(DESCRIPTION.untrained(), DESCRIPTION.net, folder, name, new_head=False)


def test_of_much_that_does_not_fit_twenty_are_named(tmp_path: Path) -> None:
    torch.save({f"layer{i}": torch.zeros(1) for i in range(30)}, tmp_path / "file")
    with pytest.raises(InputError) as caught:
        load_pretrained(DESCRIPTION.untrained(), DESCRIPTION.net, tmp_path, "file", new_head=True)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "  and 12 more")


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_models_of_torchvision_come_back(tmp_path: Path, name: str) -> None:
    shape = net_spec(name, {}, 3, 1, 64)
    net = initial_net(shape, 5)
    save_weights(tmp_path / "net", net.state_dict(), replace(DESCRIPTION, net=shape))
    again, _ = load_weights(tmp_path / "net")
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_files_as_torchvision_publishes_them() -> None:
    published = {
        "features.denseblock1.denselayer2.norm.1.weight": "features.denseblock1.denselayer2.norm1.weight",
        "features.norm0.weight": "features.norm0.weight",
        "encoder.layers.encoder_layer_0.mlp.linear_1.bias": "encoder.layers.encoder_layer_0.mlp.0.bias",
        "encoder.layers.encoder_layer_0.mlp.linear_2.bias": "encoder.layers.encoder_layer_0.mlp.3.bias",
        "aux1.conv.bn.weight": None,
        "AuxLogits.fc.bias": None,
    }
    named = vision.named_as_today({name: torch.zeros(1) for name in published})
    assert list(named) == [name for name in published.values() if name]
    densenet, vit = (set(build_net(name, {}, 3, 3, 32).state_dict()) for name in ("densenet121", "vit_b_32"))
    assert set(named) <= densenet | vit

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages import checkpoints
from stages.checkpoints import Description
from stages.command import InputError
from stages.nets import initial

DESCRIPTION = Description(
    net={"n_classes": 3, "image_size": 8, "output": "relu"},
    bias_start=1.0,
    seed=7,
    classes=["a", "b", "c"],
    mean=[0.5],
    std=[0.25],
    epoch=2,
    valid_accuracy=0.9,
    valid_loss=0.3,
)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {name: tensor * 2 for name, tensor in DESCRIPTION.untrained().state_dict().items()}


def test_what_is_saved_is_loaded(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    checkpoints.save(tmp_path / "net.safetensors", weights, DESCRIPTION)
    net, description = checkpoints.load(tmp_path / "net.safetensors")
    assert description == DESCRIPTION
    assert not net.training
    assert net.output == "relu"
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_untrained_is_the_net_before_the_first_step() -> None:
    expected = initial(DESCRIPTION.net, 1.0, 7).state_dict()
    torch.rand(5)
    for name, tensor in DESCRIPTION.untrained().state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_equal_weights_give_equal_bytes(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    for i in range(20):  # an order that is random would show
        checkpoints.save(tmp_path / f"{i}", dict(sorted(weights.items(), reverse=i % 2 == 0)), DESCRIPTION)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(20)}) == 1


def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["fc1.weight"] = torch.zeros(3, 100)
    weights["fc2.bias"] = weights.pop("fc1.bias")
    checkpoints.save(tmp_path / "net", weights, DESCRIPTION)
    with pytest.raises(InputError) as caught:
        checkpoints.load(tmp_path / "net")
    assert str(caught.value).splitlines()[1:] == [
        "  fc1.bias: the Net has (3,), the file none",
        "  fc1.weight: the Net has (3, 128), the file (3, 100)",
        "  fc2.bias: the Net has none, the file (3,)",
    ]


def test_files_of_others(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "plain")
    save_file(weights, tmp_path / "other", metadata={"repronet": json.dumps({"net": {}})})
    torch.save(weights, tmp_path / "pickle")
    (tmp_path / "cut").write_bytes((tmp_path / "plain").read_bytes()[:-8])
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    for name, message in [
        ("plain", "does not say which Net"),
        ("other", "does not say which Net"),
        ("pickle", "cannot be read as safetensors"),
        ("cut", "cannot be read as safetensors"),
        ("huge", "cannot be read as safetensors"),
        ("absent", "cannot be read as safetensors: No such file"),
    ]:
        with pytest.raises(InputError, match=message):
            checkpoints.load(tmp_path / name)

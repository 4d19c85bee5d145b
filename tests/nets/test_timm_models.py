"""timm's models, by the names that train.net gives: built, trained from a file of weights, and refused where wrong."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from stages.base.errors import InputError
from stages.base.params import WEIGHTS
from stages.evaluate import evaluate
from stages.nets import timm_models
from stages.nets.build import convolutions, initial_net, net_spec
from stages.nets.weights import read_weights
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import params_with

# One that takes any size, and ones of which the size is an argument.
MODELS = {
    "timm/resnet10t": 32,
    "timm/mobilenetv3_small_050": 32,
    "timm/vit_tiny_patch16_224": 32,
    "timm/convnext_atto": 32,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_models_take_any_channels_classes_and_sizes(name: str, channels: int) -> None:
    side = 32
    spec = net_spec(name, {}, 7, channels, side)
    one, other = (initial_net(spec, 0).eval() for _ in range(2))
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        scores = one(images)
        assert torch.equal(scores, other(images)), "equal seeds give equal weights"
    assert scores.shape == (2, 7)
    [(_, first)] = convolutions(one).items()
    assert first.weight.shape[1] == channels


def test_published_weights_are_fine_tuned(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WEIGHTS.mkdir(parents=True)
    torch.manual_seed(0)
    published = timm.create_model("resnet10t").state_dict()  # 1,000 classes, three channels
    save_file(published, WEIGHTS / "timm-resnet10t.safetensors")
    changes = {
        "train.net.name": "timm/resnet10t",
        "train.init_from": "timm-resnet10t.safetensors",
        "train.new_head": True,
        "train.freeze": "all_but_head",
        "train.normalise": "imagenet",
        "train.epochs": 1,
        "train.batch_size": 256,
    }
    params = params_with(changes)
    train(params.train, digits, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
    trained, _ = read_weights(tmp_path / "net")
    kept = set()
    for name, tensor in trained.items():
        expected = published[name].sum(1, keepdim=True) if name == "conv1.0.weight" else published[name]
        if not name.startswith("fc."):
            assert torch.equal(tensor, expected), name
            kept.add(name)
    assert len(kept) == len(published) - 2
    evaluate(
        params,
        tmp_path / "net",
        digits,
        tmp_path / "train.csv",
        tmp_path / "evaluate.json",
        tmp_path / "plots",
        Tracker.off(),
    )
    assert len((tmp_path / "plots/predictions.csv").read_text().splitlines()) == 1 + 359


@pytest.mark.parametrize(
    ("name", "arguments", "side", "message"),
    [
        (
            "timm/resnet1",
            {},
            32,
            r"train\.net\.name: 'timm/resnet1' is unknown \(did you mean timm/.*\); accepted: timm/",
        ),
        ("timm/", {}, 32, r"train\.net\.name: 'timm/' is unknown; accepted: timm/ and one of timm\.list_models"),
        ("timm/resnet10t", {"checkpoint_path": "/x"}, 32, r"timm/resnet10t\.checkpoint_path: not an argument to give"),
        (
            "timm/resnet10t",
            {"no_such": 1},
            32,
            r"arguments\.timm/resnet10t: timm/resnet10t refuses \{'no_such': 1\}: ",
        ),
        ("timm/vit_tiny_patch16_224", {}, 8, "does not take images of 8x8 pixels: .*Try another prepare.image_size"),
    ],
)
def test_what_is_refused(name: str, arguments: dict[str, object], side: int, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        initial_net(net_spec(name, {name: arguments}, 7, 1, side), 0)


def test_without_timm_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "find_spec", lambda _name: None)
    with pytest.raises(InputError) as caught:
        net_spec("timm/resnet18", {}, 7, 1, 32)
    [line] = str(caught.value).splitlines()
    assert "'timm/resnet18' needs the extra timm: pip install -c constraints.txt -e '.[timm]'" in line

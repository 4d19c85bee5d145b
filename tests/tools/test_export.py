"""Models for other programs: ONNX by onnxruntime, and torch's graph, on the very images of the test split."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

from stages.base.errors import InputError
from stages.nets.weights import load_weights
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import Project, params_with
from tools import export


def weights(prepared: Path, folder: Path, changes: dict[str, Any]) -> Path:
    given = {"train.epochs": 1, "train.batch_size": 256} | changes
    train(params_with(given).train, prepared, folder / "net", folder / "train.csv", Tracker.off())
    return folder / "net"


NETS: dict[str, dict[str, Any]] = {
    "Net": {},
    "hidden": {"train.net.arguments.Net.hidden": [20], "train.net.arguments.Net.output": "log_softmax"},
    "ResidualNet": {"train.net.name": "ResidualNet"},
    "resnet18": {"train.net.name": "resnet18"},
    "timm": {"train.net.name": "timm/mobilenetv3_small_050"},
}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *(("digits", name) for name in NETS if name != "timm"),
        *(("colours", name) for name in NETS if name != "resnet18"),
        pytest.param("digits", "timm", marks=pytest.mark.torture),
        pytest.param("colours", "resnet18", marks=pytest.mark.torture),
    ],
)
def test_the_files_give_the_model_s_scores(
    name: str,
    data: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepared: Path = request.getfixturevalue(data)
    file = weights(prepared, tmp_path, NETS[name])
    arguments = ["export", str(file), "--onnx", str(tmp_path / "m.onnx"), "--pt2", str(tmp_path / "m.pt2")]
    monkeypatch.setattr("sys.argv", arguments)
    export.main()
    differences = re.findall(r"its scores differ from the model's by (\S+) at most", capsys.readouterr().out)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-5

    net, description = load_weights(file)
    manifest = pd.read_csv(prepared / "manifest.csv")
    images = np.load(prepared / "images.npy")[manifest.loc[manifest["split"] == "test", "index"]]
    with torch.no_grad():
        expected = description.classifier(net)(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    [scores] = session.run(None, {"images": images})
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert (np.asarray(scores).argmax(1) == expected.argmax(1)).mean() > 0.99
    found = {each.key: json.loads(each.value) for each in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert found["classes"] == description.classes
    # As MLflow reads them; nothing of ours reads one.
    extra = {"classes": ""}
    program = torch.export.load(str(tmp_path / "m.pt2"), extra_files=extra)
    torch.testing.assert_close(program.module()(torch.from_numpy(images)), torch.from_numpy(expected))
    assert json.loads(extra["classes"]) == description.classes


def test_transforms_are_part_of_the_file_and_the_size_before_them_is_known(
    digits: Path, colours: Path, tmp_path: Path
) -> None:
    resized = {f"train.transforms.{split}": [{"Resize": {"size": [28, 28]}}] for split in ("train", "eval")}
    net, description = load_weights(weights(digits, tmp_path, resized))
    assert export.example(description).shape == (2, 8, 8)
    assert export.write_pt2(tmp_path / "m.pt2", description.classifier(net).eval(), description) < 1e-5
    _, description = load_weights(weights(colours, tmp_path, resized))  # whose folder says nothing of decoding
    with pytest.raises(InputError, match="do not say of which size images are; train it again"):
        export.example(description)


def test_what_cannot_be_exported(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = weights(digits, tmp_path, {})
    net, description = load_weights(file)
    classifier = description.classifier(net).eval()
    monkeypatch.setattr(export, "CLOSE", -1.0)
    for write in (export.write_onnx, export.write_pt2):
        with pytest.raises(InputError, match=r"model: not written, since its scores would differ by"):
            write(tmp_path / "model", classifier, description)
        assert not (tmp_path / "model").exists()
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    monkeypatch.setattr("sys.argv", ["export", str(file), "--onnx", str(tmp_path / "m.onnx")])
    with pytest.raises(InputError) as caught:
        export.main()
    assert str(caught.value) == "--onnx needs onnxscript: pip install -c constraints.txt -e '.[onnx]'"


def test_a_run_is_exported_by_its_name(compared: Project) -> None:
    printed = compared("python", "-m", "tools.export", "seed-1", "--onnx", "one.onnx")
    assert "one.onnx: seed-1 (0.9" in printed
    assert onnx.load(str(compared.root / "one.onnx")).graph.input[0].name == "images"
    assert "name a file to write: --onnx FILE or --pt2 FILE" in compared("python", "-m", "tools.export", fails=True)

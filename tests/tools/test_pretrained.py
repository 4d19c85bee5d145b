"""Published weights, fetched from a server of this machine into data/weights/."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from stages.base.errors import InputError
from stages.base.params import WEIGHTS
from stages.batches.normalise import STATISTICS
from stages.nets.build import build_net, net_spec
from stages.nets.weights import load_pretrained
from tools import pretrained


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and where a server has it; the working directory has an empty data/weights/."""
    folder = tmp_path / "site"
    for name in (folder, tmp_path / "project" / WEIGHTS):
        name.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_torchvision_s_are_checked_by_their_name(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = site
    torch.save(models.squeezenet1_1().state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    for name in (f"squeezenet1_1-{digest[:8]}.pth", "squeezenet1_1-00000000.pth", "squeezenet1_1-mine.pth"):
        (folder / name).write_bytes((folder / "new.pth").read_bytes())
    monkeypatch.setattr("sys.argv", ["pretrained", "squeezenet1_1", "--url", f"{url}/squeezenet1_1-00000000.pth"])
    with pytest.raises(InputError, match=r"00000000\.pth cannot be fetched: invalid hash value"):
        pretrained.main()
    assert list(WEIGHTS.iterdir()) == []
    for name in (f"squeezenet1_1-{digest[:8]}.pth", "squeezenet1_1-mine.pth"):
        monkeypatch.setattr("sys.argv", ["pretrained", "squeezenet1_1", "--url", f"{url}/{name}"])
        pretrained.main()
        spec = net_spec("squeezenet1_1", {}, 5, 1, 32)
        load_pretrained(build_net(**spec), spec, WEIGHTS, name, new_head=True)
    pretrained.main()
    said = capsys.readouterr().out
    assert "data/weights/squeezenet1_1-mine.pth is there already" in said
    assert "-S train.new_head=true -S train.normalise=imagenet" in said


def test_torchvision_s_default_is_meant_and_scales_are_named() -> None:
    found = pretrained.published("vit_b_16")
    assert found.file == "vit_b_16-c867db91.pth"
    scales = {"resnet18": "imagenet", "efficientnet_v2_l": "half", "inception_v3": "half", "timm/resnet18": "imagenet"}
    scales["timm/vit_tiny_patch16_224"] = "half"
    for name, scale in scales.items():
        found = pretrained.published(name)
        assert (found.mean, found.std) == STATISTICS[scale]


def test_other_scales_are_said(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = site
    torch.save(timm.create_model("vit_base_patch32_clip_224", num_classes=3).state_dict(), folder / "clip.pth")
    monkeypatch.setattr("sys.argv", ["pretrained", "timm/vit_base_patch32_clip_224", "--url", f"{url}/clip.pth"])
    pretrained.main()
    shown, said = capsys.readouterr()
    assert "train.normalise" not in shown
    assert "warning: no train.normalise has their mean [0.481" in said


def test_timm_s_come_from_the_hub(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = site
    spec = net_spec("timm/resnet10t", {}, 1000, 3, 32)
    there = folder / "timm/resnet10t.c3_in1k/resolve/main"
    there.mkdir(parents=True)
    save_file(build_net(**spec).state_dict(), there / "model.safetensors")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr("sys.argv", ["pretrained", "timm/resnet10t"])
    pretrained.main()
    assert [file.name for file in WEIGHTS.iterdir()] == ["timm-resnet10t.safetensors"]
    said = capsys.readouterr().out
    assert "dvc add data/weights/timm-resnet10t.safetensors && git add " in said
    assert "dvc exp run -S prepare.image_size=176 -S train.net.name=timm/resnet10t -S" in said


def test_what_cannot_be_had(site: tuple[Path, str]) -> None:
    folder, url = site
    (folder / "page.pth").write_text("<html>sign in</html>")
    known = pretrained.published("resnet18")
    with pytest.raises(InputError, match=r"none\.pth cannot be fetched: HTTP Error 404.*\nPut the file into data/wei"):
        pretrained.fetch("resnet18", replace(known, url=f"{url}/none.pth", file="none.pth"))
    with pytest.raises(InputError, match="is neither safetensors nor a state dict"):
        pretrained.fetch("resnet18", replace(known, url=f"{url}/page.pth", file="page.pth"))
    torch.save(models.squeezenet1_1().state_dict(), folder / "other.pth")
    with pytest.raises(InputError, match=r"do not fit the net:"):
        pretrained.fetch("resnet18", replace(known, url=f"{url}/other.pth", file="other.pth"))
    with pytest.raises(InputError, match=r"MODEL: 'Net' has no published weights"):
        pretrained.published("Net")
    with pytest.raises(InputError, match=r"'resnet1' is unknown"):
        pretrained.published("resnet1")
    assert list(WEIGHTS.iterdir()) == []

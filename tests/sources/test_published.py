"""Fashion-MNIST from each of its places, with the real files of Debian's package, and what is said of wrong ones."""

import gzip
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from stages.base.errors import InputError
from stages.base.params import NOTHING
from stages.prepare import prepare
from stages.sources import published
from stages.sources.loading import load_source
from stages.sources.source import Source
from tests.conftest import params_with

NAMES = list(published.FASHION_MNIST)


def fashion_mnist(path: Path = NOTHING) -> Source:
    return load_source(params_with({"prepare.source": "fashion_mnist", "prepare.path": str(path)}).prepare)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder that holds the package's files."""
    assert published.DEBIAN.exists(), "these tests need Debian's package dataset-fashion-mnist"
    return shutil.copytree(published.DEBIAN, tmp_path / "brought")


def test_from_debian_s_package() -> None:
    source = fashion_mnist()
    assert source.images is not None
    assert source.images.shape == (70_000, 28, 28)
    assert source.images.dtype == np.uint8
    assert source.rows["label"].value_counts().to_dict() == dict.fromkeys(source.classes, 7000)
    assert source.rows["split"].tolist() == ["train"] * 60_000 + ["test"] * 10_000
    # The first training image is an ankle boot, as its paper shows, the first test image too.
    assert source.rows["label"][[0, 1, 60_000]].tolist() == ["Ankle boot", "T-shirt/top", "Ankle boot"]
    assert source.rows["source"][[0, 60_000]].tolist() == ["train/0", "t10k/0"]


def test_from_the_user_s_files_gzipped_or_not(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "DEBIAN", raw / "none")
    packed = raw / f"{NAMES[0]}.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(fashion_mnist(raw).rows) == 70_000


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A mirror of the four files on this machine, for torchvision to download from."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(published.DEBIAN))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # torchvision checks md5 sums of the packed files, and Debian's are packed anew.
    md5 = [(f"{name}.gz", hashlib.md5((published.DEBIAN / f"{name}.gz").read_bytes()).hexdigest()) for name in NAMES]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", md5)
    monkeypatch.setattr(published, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(published, "DOWNLOADS", tmp_path / "downloads")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("mirror")
def test_from_a_download_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fashion_mnist().images
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    again = fashion_mnist().images
    assert first is not None
    assert again is not None
    assert np.array_equal(again, first)


def test_absent_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(published, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(
        InputError, match=r"(?s)'fashion_mnist' is not here .*Put its four files.*prepare\.path.*dataset-fashion-mnist"
    ):
        prepare(params_with({"prepare.source": "fashion_mnist"}).prepare, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("cut", [0, 5, 100_000, -100])
def test_a_cut_packed_file(raw: Path, cut: int) -> None:
    file = raw / f"{NAMES[2]}.gz"
    file.write_bytes(file.read_bytes()[:cut])
    expected, _ = published.FASHION_MNIST[NAMES[2]]
    message = rf"(?s)t10k-images-idx3-ubyte\.gz is not .*, or cut .*found +\w{{64}}\n.*expected {expected}\nFetch"
    with pytest.raises(InputError, match=message):
        fashion_mnist(raw)


def test_a_cut_unpacked_file_names_both_sums(raw: Path) -> None:
    file = raw / NAMES[3]
    content = gzip.decompress(file.with_suffix(".gz").read_bytes())[:-1]
    file.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match=f"(?s)10,007 bytes.*{found}.*{published.FASHION_MNIST[NAMES[3]][0]}.*Fetch"):
        fashion_mnist(raw)


def test_a_missing_file(raw: Path) -> None:
    (raw / f"{NAMES[1]}.gz").unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: no such file, nor .*\.gz"):
        fashion_mnist(raw)

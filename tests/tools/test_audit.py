"""Wrong labels and images that are nearly the same, planted among the digits, and found."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages.base.errors import InputError
from stages.batches.prepared import Prepared
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, params_with
from tools import audit
from tools.runs import Runs

WRONG = 12


@pytest.fixture(scope="module")
def spoilt(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, some of the test labels wrong, and two of the training images again in test, one of them brighter."""
    folder = tmp_path_factory.mktemp("audit")
    prepared = shutil.copytree(digits, folder / "prepared")
    manifest = pd.read_csv(prepared / "manifest.csv")
    test = manifest.index[manifest["split"] == "test"]
    manifest.loc[test[:WRONG], "label"] = (manifest.loc[test[:WRONG], "label"] + 3) % 10
    manifest.to_csv(prepared / "manifest.csv", index=False)
    images = np.load(prepared / "images.npy")
    training = manifest.index[manifest["split"] == "train"]
    images[manifest.loc[test[20], "index"]] = images[manifest.loc[training[5], "index"]]
    images[manifest.loc[test[21], "index"]] = images[manifest.loc[training[6], "index"]] // 2 + 9
    np.save(prepared / "images.npy", images)
    train(params_with({"train.epochs": 20}).train, digits, folder / "net", folder / "train.csv", Tracker.off())
    return folder


def audited(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> pd.DataFrame:
    monkeypatch.chdir(ROOT)
    out = folder / "audit.csv"
    command = ["audit", str(folder / "net"), "--prepared", str(folder / "prepared"), "--out", str(out), *options]
    monkeypatch.setattr("sys.argv", command)
    audit.main()
    return pd.read_csv(out)


def test_what_was_planted_is_found(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = audited(spoilt, monkeypatch)
    manifest = pd.read_csv(spoilt / "prepared/manifest.csv")
    test = manifest[manifest["split"] == "test"]
    labels = found[found["kind"] == "label"]
    planted = set(test["source"].iloc[:WRONG])
    assert len(planted & set(labels["source"])) >= WRONG - 2, "the net itself errs, too"
    assert len(labels) < 2 * WRONG
    assert labels["score"].is_monotonic_increasing
    assert (labels["suggested"] != labels["label"]).all()

    same = found[found["kind"] == "same"].set_index("source")
    training = manifest[manifest["split"] == "train"]
    for test_place, original in ((20, 5), (21, 6)):
        row = same.loc[training["source"].iloc[original]]
        assert (row["split"], row["other_split"], row["bits"]) == ("train", "test", 0)
        assert row["other"] == test["source"].iloc[test_place], "prepare, too, keeps the one in test"
    assert same["bits"].between(0, 4).all()
    assert same["bits"].is_monotonic_increasing
    nearest = by_all_pairs(spoilt)
    assert dict(zip(same.index, same["bits"], strict=True)) == nearest
    printed = capsys.readouterr()
    assert " labels of 538 images of validation and test are likely wrong;" in printed.out
    assert f" {len(nearest)} images are nearly the same as an earlier one" in printed.out
    assert "warning: nothing says that " in printed.err


def by_all_pairs(folder: Path) -> dict[str, int]:
    """The images that have an earlier one within four bits, and in how many, by comparing all with all."""
    data = Prepared(folder / "prepared")
    names = ("test", "valid", "train")
    hashes = np.concatenate([audit.hashed(data.split(name, torch.device("cpu"))) for name in names])
    sources = [source for name in names for source in data.sources(name)]
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None])
    least = {source: int(differing[place, :place].min()) for place, source in enumerate(sources) if place}
    return {source: bits for source, bits in least.items() if bits <= 4}


@pytest.mark.parametrize("bits", [0, 1, 4, 15])
def test_nearest_hashes_are_those_of_all_pairs(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    some = random.integers(2**64, size=40, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(64, size=(40, 9, 3)).astype(np.uint64)
    hashes = np.unique(np.concatenate([some, (some[:, None] ^ np.bitwise_xor.reduce(flips, axis=2)).flatten()]))
    random.shuffle(hashes)
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None]).astype(int)
    expected = {
        place: (int(row.min()), int(row.argmin()))
        for place in range(1, len(hashes))
        if (row := differing[place, :place]).min() <= bits
    }
    assert audit.nearest_earlier(hashes, bits) == (expected, 0)
    assert bits == 0 or expected
    monkeypatch.setattr(audit, "ALIKE", 1)
    assert audit.nearest_earlier(hashes, 15)[1] > 0


def test_a_run_that_may_have_been_trained_on_these_images(
    store: Runs, spoilt: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.find("seed-0")
    monkeypatch.setattr("sys.argv", ["audit", "seed-0", "--prepared", str(digits), "--out", "found.csv"])
    shutil.copy(ROOT / "params.yaml", tmp_path)
    audit.main()
    assert (tmp_path / "found.csv").exists()
    other = shutil.copytree(spoilt / "prepared", tmp_path / "prepared")
    info = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(info.replace('"valid": "', '"valid": "0'))
    monkeypatch.setattr("sys.argv", ["audit", "seed-0", "--prepared", str(other), "--out", "found.csv"])
    with pytest.raises(InputError, match=rf"{run.name} .* has other images in valid than .*prepare\.seed=0"):
        audit.main()
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("data/excluded.csv", "found.csv", 1)
    )
    with pytest.raises(InputError, match=r"--out: 'found\.csv' is what prepare\.exclude names"):
        audit.main()


def test_other_classes_and_a_missing_extra(spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = shutil.copytree(spoilt, tmp_path / "other")
    info = (other / "prepared/dataset.json").read_text().replace('"three"', '"drei"')
    (other / "prepared/dataset.json").write_text(info)
    with pytest.raises(InputError, match=r"net knows the classes .*'three'.* has .*'drei'"):
        audited(other, monkeypatch)
    monkeypatch.setattr(audit, "find_spec", lambda name: None if name == "cleanlab" else name)
    with pytest.raises(InputError) as caught:
        audited(spoilt, monkeypatch)
    assert str(caught.value) == "tools.audit needs cleanlab: pip install -c constraints.txt -e '.[audit]'"

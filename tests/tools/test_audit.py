"""Wrong labels and images that are nearly the same, planted among the digits, and found."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.base.errors import InputError
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, params_with
from tools import audit

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
    assert set(labels["source"][: WRONG - 2]) <= planted, "the least probable come first"
    assert (labels["suggested"] != labels["label"]).all()

    same = found[found["kind"] == "same"].set_index("source")
    training = manifest[manifest["split"] == "train"]
    for place in (20, 21):
        row = same.loc[test["source"].iloc[place]]
        assert row["bits"] == 0
        assert (row["split"], row["other_split"]) == ("test", "train")
    assert same.loc[test["source"].iloc[20], "other"] == training["source"].iloc[5]
    assert same["bits"].between(0, 4).all()
    assert same["bits"].is_monotonic_increasing
    exact = found_by_all_pairs(spoilt)
    assert set(same.index) == exact
    assert " labels of 538 images of validation and test are likely wrong;" in capsys.readouterr().out


def found_by_all_pairs(folder: Path) -> set[str]:
    """The images that have an earlier one within four bits, by comparing all with all."""
    import torch

    from stages.batches.prepared import Prepared

    data = Prepared(folder / "prepared")
    names = ("train", "valid", "test")
    splits = [data.split(name, torch.device("cpu")) for name in names]
    hashes = np.concatenate([audit.hashed(split) for split in splits])
    sources = [source for name in names for source in data.sources(name)]
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return {sources[place] for place in range(1, len(hashes)) if (differing[place, :place] <= 4).any()}


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

"""Predictions of files: evaluate's own, to the last digit, in any order and form; what is no image is listed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.base.errors import InputError
from stages.evaluate import evaluate
from stages.nets.weights import read_weights, save_weights
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, Project, clean_environment, params_with, write_image
from tools import model, predict

CLASSES = ["file", "red"]  # the first is the name of a column, too
FILES = 150


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs of two classes, of many kinds, and a training on them."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(FILES):
        name, kind = CLASSES[number % 2], ("png", "jpg", "bmp", "gif", "tiff")[number % 5]
        write_photograph(folder / f"raw/{name}/{number}.{kind}", number)
    params = params_with(
        {
            "prepare.source": "folder",
            "prepare.path": str(folder / "raw"),
            "prepare.image_size": 12,
            "prepare.fit": "pad",
            "train.epochs": 3,
            "train.transforms.train": [{"Resize": {"size": [16, 16]}}],
            "train.transforms.eval": [{"Resize": {"size": [16, 16]}}],
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        prepared, weights = folder / "prepared", folder / "net.safetensors"
        prepare(params.prepare, prepared)
        train(params.train, prepared, weights, folder / "train.csv", Tracker.off())
        evaluate(params, weights, prepared, None, folder / "evaluate.json", folder / "plots", Tracker.off())
    return folder


def write_photograph(path: Path, number: int) -> None:
    """Write noise, oblong, lighter in its red for every other number, and now and then turned by its EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 150, (rng.integers(10, 40), rng.integers(10, 40), 3))
    pixels[..., 0] += 100 * (number % 2)
    image = Image.fromarray(pixels.astype(np.uint8))
    if path.suffix == ".jpg":
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(path, exif=exif)
    else:
        image.save(path)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What runs the command in this process."""

    def run(*arguments: "str | Path") -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["tools.predict", *map(str, arguments)])
        predict.main()

    return run


def evaluated(folder: Path) -> pd.DataFrame:
    """What evaluate wrote of the test images, as text, with the names of predict's columns."""
    table = pd.read_csv(folder / "plots/predictions.csv", dtype=str)
    renamed = {"source": "file", "predicted": "class", "file": "file (class)"}
    return table.drop(columns=["index", "label"]).rename(columns=renamed)


@pytest.mark.parametrize("block", [7, 1000])
def test_files_of_the_test_split_give_evaluate_s_predictions(
    photographs: Path, predicted: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    expected = evaluated(photographs)
    assert len(expected) == FILES // 5
    assert set(expected["class"]) == set(CLASSES)
    shuffled = expected.sample(frac=1, random_state=0)
    shuffled[["file"]].assign(more=1).to_csv(photographs / "raw/list.csv", index=False)
    monkeypatch.setattr(model, "BLOCK_IMAGES", block)
    predicted(photographs / "net.safetensors", photographs / "raw/list.csv", "--out", tmp_path / "out.csv")
    (photographs / "raw/list.csv").unlink()
    assert (tmp_path / "out.csv").read_text() == shuffled.to_csv(index=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_all_forms_say_the_same(photographs: Path, predicted: Callable[..., None], tmp_path: Path) -> None:
    weights, raw = photographs / "net.safetensors", photographs / "raw"
    for out in ("out.csv", "out.json", "out.parquet"):
        predicted(weights, raw / "red", raw / "file/0.png", "--out", tmp_path / out)
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == FILES // 2 + 1
    names = table["file"].tolist()
    assert names == [*sorted(names[:-1]), f"{raw}/file/0.png"]
    assert json.loads((tmp_path / "out.json").read_text()) == table.to_dict("records")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out.parquet"), table, check_dtype=False, rtol=0, atol=5.1e-7
    )
    predicted(weights, raw / "red", raw / "file/0.png", "--out", tmp_path / "top.csv", "--top", "2")
    top = pd.read_csv(tmp_path / "top.csv")
    assert list(top) == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert top["class_1"].tolist() == table["class"].tolist()
    shares = table.iloc[:, 2:]
    assert top["probability_1"].tolist() == shares.max(axis=1).tolist()
    assert top["probability_2"].tolist() == shares.min(axis=1).tolist()


def test_without_a_file_it_is_shown(
    photographs: Path, predicted: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(photographs / "net.safetensors", photographs / "raw/file/0.png", photographs / "raw/red/1.jpg")
    shown, said = capsys.readouterr()
    assert shown.splitlines()[0] == "file,class,file (class),red"
    assert [line.split(",")[0][-5:] for line in shown.splitlines()[1:]] == ["0.png", "1.jpg"]
    assert "colour" not in said


def test_what_is_no_image_is_listed(
    photographs: Path, predicted: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "mixed", tmp_path / "out.csv"
    folder.mkdir()
    (tmp_path / "elsewhere.png").touch()
    shutil.copy(photographs / "raw/file/0.png", folder / "=good.png")
    (folder / "cut.jpg").write_bytes((photographs / "raw/red/1.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    (folder / "out").symlink_to(tmp_path / "elsewhere.png")
    predicted(photographs / "net.safetensors", folder, "--out", out)
    rejected = pd.read_csv(tmp_path / "out.rejected.csv").set_index("file")["reason"]
    assert [Path(name).name for name in rejected.index] == ["cut.jpg", "notes.txt", "out"]
    assert [reason.split(":")[0] for reason in rejected] == ["cut or damaged", "not an image", "outside the folder"]
    assert pd.read_csv(out)["file"].tolist() == [f"{folder}/=good.png"]
    said = capsys.readouterr().err
    kinds = "cut or damaged 1, not an image 1, outside the folder 1"
    assert f"3 of 4 files cannot be used ({kinds}); all of them are in {tmp_path}/out.rejected.csv" in said
    # The list of an earlier time does not stay.
    predicted(photographs / "net.safetensors", folder / "=good.png", "--out", out)
    assert not (tmp_path / "out.rejected.csv").exists()
    # Where nothing can be used, what was there stays.
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"none of the 1 files can be used:\n  .*/notes.txt: not an image"):
        predicted(photographs / "net.safetensors", folder / "notes.txt", "--out", out)
    assert out.read_bytes() == before
    assert not (tmp_path / "out.rejected.csv").exists()


def test_colours_that_the_model_does_not_see_are_said(
    digits: Path, predicted: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train(params_with({"train.epochs": 1}).train, digits, tmp_path / "net", tmp_path / "train.csv", Tracker.off())
    write_image(tmp_path / "gray.png", 0, side=8)
    write_image(tmp_path / "colour.png", 0, side=20, mode="RGB")
    predicted(tmp_path / "net", tmp_path / "gray.png", tmp_path / "colour.png")
    assert "1 image has colour, which the model does not see" in capsys.readouterr().err


def test_every_row_of_a_table_is_accounted_for(
    photographs: Path, predicted: Callable[..., None], tmp_path: Path
) -> None:
    raw = photographs / "raw"
    rows = [f"{raw}/red/1.jpg, 5", ",6", "gone.png", "gone.png", f" {raw}/file/0.png "]
    (tmp_path / "list.csv").write_text("\n".join([" image ,number", *rows]))
    predicted(photographs / "net.safetensors", tmp_path / "list.csv", "--out", tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["file"].tolist() == [f"{raw}/red/1.jpg", f"{raw}/file/0.png"]
    rejected = (tmp_path / "out.rejected.csv").read_text().splitlines()[1:]
    assert rejected == ["line 3,no path", "gone.png,missing file", "gone.png,missing file"]


NAMES = "file or image or source or path; --column names another"
WHERE = "which is or would be in {folder}/"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors", "raw"], "MODEL: '{folder}/none.safetensors' is no file"),
        (["net.safetensors", "nothing"], "PATHS: '{folder}/nothing' is no file and no folder"),
        (["net.safetensors", "empty"], "PATHS: there are no files in {folder}/empty"),
        (
            ["net.safetensors", "table.csv"],
            f"{{folder}}/table.csv has the columns a, b, should have {NAMES}",
        ),
        (["net.safetensors", "table.csv", "--column", "c"], "{folder}/table.csv has the columns a, b, should have c"),
        (["net.safetensors", "table.csv", "--column", "b"], "{folder}/table.csv, line 2: 3 cells, and 2 in the header"),
        (
            ["net.safetensors", "nothing.csv"],
            f"{{folder}}/nothing.csv has no columns, should have {NAMES}",
        ),
        (["net.safetensors", "absent.csv"], "{folder}/absent.csv: No such file or directory"),
        (
            ["net.safetensors", "raw", "--out", "out.xlsx"],
            "--out: '{folder}/out.xlsx', should end in .csv, .json, .parquet",
        ),
        (
            ["net.safetensors", "table.csv", "--out", "table.csv"],
            "--out: '{folder}/table.csv' would write {folder}/table.csv, " + WHERE + "table.csv, to be read",
        ),
        (
            ["net.safetensors", "raw", "--out", "raw/out.csv"],
            "--out: '{folder}/raw/out.csv' would write {folder}/raw/out.csv, " + WHERE + "raw, to be read",
        ),
        (
            ["net.safetensors", "table.rejected.csv", "--out", "table.json"],
            "--out: '{folder}/table.json' would write {folder}/table.rejected.csv,"
            " which is or would be in {folder}/table.rejected.csv, to be read",
        ),
        (
            ["early.safetensors", "raw"],
            "{folder}/early.safetensors: its weights, of code of another time, do not say how an image is read;"
            " train it again",
        ),
    ],
)
def test_what_cannot_be(photographs: Path, predicted: Callable[..., None], arguments: list[str], message: str) -> None:
    (photographs / "empty").mkdir(exist_ok=True)
    (photographs / "nothing.csv").touch()
    (photographs / "table.csv").write_text("a,b\n1,2,3\n")
    (photographs / "table.rejected.csv").write_text("file\nx.png\n")
    weights, description = read_weights(photographs / "net.safetensors")
    assert description
    save_weights(photographs / "early.safetensors", weights, replace(description, decoding={}))
    before = sorted(photographs.rglob("*"))
    given = [name if name.startswith("--") or name in ("b", "c") else str(photographs / name) for name in arguments]
    with pytest.raises(InputError) as error:
        predicted(*given)
    assert str(error.value) == message.format(folder=photographs)
    assert sorted(photographs.rglob("*")) == before


def test_a_name_that_is_not_utf_8_is_listed(
    photographs: Path, predicted: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(photographs / "raw/file/0.png", odd)
    predicted(photographs / "net.safetensors", odd, photographs / "raw/file/0.png")
    assert f"  {tmp_path}/\\udcff.png: not a name: it is not UTF-8" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(photographs: Path) -> None:
    many = f"{photographs}/raw " * 40  # more than a pipe holds
    command = f"{sys.executable} -m tools.predict {photographs}/net.safetensors {many} | head -1"
    ended = subprocess.run(command, shell=True, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    assert ended.stdout == "file,class,file (class),red\n"
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("top", ["0", "3", "-1"])
def test_top_is_checked(photographs: Path, predicted: Callable[..., None], top: str) -> None:
    with pytest.raises(InputError, match=rf"--top: {top}, should be from 1 to 2"):
        predicted(photographs / "net.safetensors", photographs / "raw", "--top", top)


def test_a_run_is_named_as_elsewhere(compared: Project, digits: Path) -> None:
    predictions = pd.read_csv(compared.root / "seed-1/plots/predictions.csv", dtype=str)
    images = np.load(digits / "images.npy")
    for row in predictions["index"][:20].astype(int):
        (compared.root / "pictures").mkdir(exist_ok=True)
        Image.fromarray(images[row]).save(compared.root / f"pictures/{row:05}.png")
    printed = compared("python", "-m", "tools.predict", "seed-1", "pictures", "--out", "out.csv")
    assert "out.csv: what seed-1 (0.9" in printed
    found = pd.read_csv(compared.root / "out.csv", dtype=str)
    expected = predictions[:20].sort_values("index", key=lambda rows: rows.astype(int))
    assert found.iloc[:, 1:].to_numpy().tolist() == expected.iloc[:, 3:].to_numpy().tolist()
    assert "there are: best, seed-1" in compared("python", "-m", "tools.predict", "none", "pictures", fails=True)

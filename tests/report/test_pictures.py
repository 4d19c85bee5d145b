"""Pictures, read back pixel by pixel where that can be said in numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from stages.base.errors import InputError
from stages.report import canvas, charts, pictures
from stages.training.calibration import bins
from stages.training.curves import curve
from tests.report.conftest import drawn, near


def frame(image: np.ndarray) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of the only axes in the image, in pixels: where their two black lines end."""
    black = image.max(axis=2) < 0.1
    bottom, left = black.sum(axis=1).argmax(), black.sum(axis=0).argmax()
    return int(left), int(black[bottom].nonzero()[0].max()), int(black[:, left].nonzero()[0].min()), int(bottom)


@pytest.mark.parametrize("chosen", [2, 3])
def test_learning_curves_mark_the_chosen_epoch(tmp_path: Path, chosen: int) -> None:
    curves = {
        "train/loss": np.array([1.0, 0.5, 0.2]),
        "valid/loss": np.array([0.9, 0.7, 0.4]),
        "train/accuracy": np.array([0.2, 0.6, 1.0]),
        "valid/accuracy": np.array([0.3, 0.5, 0.8]),
    }
    canvas.save(charts.learning_curves(pd.DataFrame({"epoch": [1, 2, 3]} | curves), chosen), tmp_path / "a.png")
    image = drawn(tmp_path / "a.png")
    middle = image.shape[1] // 2
    for quantity, half in [("loss", image[:, :middle]), ("accuracy", image[:, middle:])]:
        left, right, top, bottom = frame(half)
        epochs = left + (right - left) * np.array([0.05, 0.5, 0.95])  # matplotlib leaves 5 % on each side
        train, valid = curves[f"train/{quantity}"], curves[f"valid/{quantity}"]
        for values, colour in [(train, (0x66, 0x66, 0x66)), (valid, (0x21, 0x66, 0xAC))]:
            shares = (values - train.min()) / (train.max() - train.min())
            heights = bottom - (bottom - top) * (0.05 + 0.9 * shares)
            rows, columns = near(half, colour)
            for x, y in zip(epochs, heights, strict=True):
                assert np.hypot(rows - y, columns - x).min() < 3
        rows, columns = near(half, (0xD6, 0x60, 0x4D))
        pixels = np.bincount(columns)
        assert pixels.argmax() == pytest.approx(epochs[chosen - 1], abs=2)
        assert 0.5 < pixels.max() / (bottom - top) < 0.9, "from bottom to top, with gaps"


def test_confusion_colours_by_the_share_of_the_row(tmp_path: Path) -> None:
    canvas.save(charts.confusion(torch.tensor([[3, 0], [0, 300]]), ["few", "many"]), tmp_path / "a.png")
    image = drawn(tmp_path / "a.png")
    rows, columns = near(image[:, : int(0.76 * image.shape[1])], (8, 48, 107))  # the darkest of Blues
    few = rows < (rows.min() + rows.max()) / 2
    # Both cells of the diagonal are full, whatever their counts.
    assert columns[few].max() < columns[~few].min()
    assert few.sum() == pytest.approx((~few).sum(), rel=0.1)


def mistakes(
    path: Path, images: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, probabilities: torch.Tensor
) -> np.ndarray:
    """Draw the mistakes among all images, as evaluate does."""
    wrong = pictures.most_confident(labels, predicted, probabilities)
    count = int((labels != predicted).sum())
    picked = (labels[wrong], predicted[wrong], probabilities[wrong].max(1).values)
    canvas.save(
        pictures.mistakes(images[wrong], *picked, [f"${i}_$" for i in range(200)], [f"{i}.png" for i in wrong], count),
        path,
    )
    return drawn(path)


def test_mistakes_of_a_perfect_net(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1])
    image = mistakes(tmp_path / "a.png", torch.zeros(2, 8, 8, dtype=torch.uint8), labels, labels, torch.eye(2))
    assert image.min() < 0.5, "it says that there are none"


def test_the_most_confident_mistake_comes_first(tmp_path: Path) -> None:
    images = torch.stack([torch.full((8, 8), value, dtype=torch.uint8) for value in (60, 120, 180)])
    labels, predicted = torch.tensor([0, 0, 0]), torch.tensor([1, 0, 1])
    probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    assert pictures.most_confident(labels, predicted, probabilities).tolist() == [2, 0]
    image = mistakes(tmp_path / "a.png", images, labels, predicted, probabilities)
    sure, right, unsure = (near(image, (value, value, value))[1] for value in (180, 120, 60))
    assert np.median(sure) < np.median(unsure)
    assert len(sure) == pytest.approx(len(unsure), rel=0.05)
    assert len(right) < len(sure) / 10, "only some edge of a letter is as grey as that"


def test_examples_show_each_class_in_its_row(tmp_path: Path) -> None:
    images = torch.stack([torch.full((8, 8), value, dtype=torch.uint8) for value in (200, 40, 200, 40, 40)])
    canvas.save(
        pictures.examples(images, torch.tensor([1, 0, 1, 0, 0]), ["dark", "light"], torch.tensor([3, 2])),
        tmp_path / "a.png",
    )
    image = drawn(tmp_path / "a.png")
    dark, light = (near(image, (value, value, value))[0] for value in (40, 200))
    assert np.median(dark) < np.median(light)
    assert len(dark) > 1.3 * len(light), "three against two"


def test_colours_are_drawn_as_they_are(tmp_path: Path) -> None:
    colours = [(200, 40, 90), (20, 160, 60)]
    images = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(2, 3, 8, 8)
    labels = torch.tensor([0, 1])
    canvas.save(pictures.examples(images, labels, ["one", "other"], labels.bincount()), tmp_path / "a.png")
    both = [mistakes(tmp_path / "b.png", images, labels, 1 - labels, torch.eye(2)), drawn(tmp_path / "a.png")]
    for image in both:
        one, other = (near(image, colour) for colour in colours)
        assert len(one[0]) == pytest.approx(len(other[0]), rel=0.1)
        assert len(one[0]) > 1000
    assert near(both[1], (255, 255, 255))[0].size > both[1].size / 3 / 2, "what no image fills stays white"


def test_a_hundred_classes_fit_on_a_page(tmp_path: Path) -> None:
    names = [f"{'a long name ' * 5}{i}" for i in range(100)]
    labels = torch.arange(1300) % 100
    first = pictures.first_of_each(labels, 100)
    assert first.tolist() == [100 * k + label for label in range(pictures.ROWS) for k in range(12)]
    images = torch.randint(256, (len(first), 3, 224, 224), dtype=torch.uint8)
    canvas.save(pictures.examples(images, labels[first], names, labels.bincount()), tmp_path / "examples.png")
    canvas.save(charts.confusion(torch.eye(100, dtype=torch.int64) * 13, names), tmp_path / "confusion.png")
    table = pd.DataFrame({"class": names, "correct": 13, "total": 13, "recall": 1.0})
    canvas.save(charts.classes(table), tmp_path / "classes.png")
    for path in tmp_path.iterdir():
        assert drawn(path).shape[0] <= 1600


def test_mistakes_name_their_files_and_how_many_of_them_are_shown(tmp_path: Path, written: list[str]) -> None:
    images, labels = torch.zeros(30, 8, 8, dtype=torch.uint8), torch.zeros(30, dtype=torch.int64)
    shares = torch.full((30, 2), 0.5)
    mistakes(tmp_path / "a.png", images, labels, labels + 1, shares)
    assert "The 24 most confident of 30 mistakes, the most confident first" in written
    assert {f"{i}.png" for i in range(24)} <= set(written)
    assert "$1_$ 50%\nis $0_$" in written
    written.clear()
    mistakes(tmp_path / "a.png", images[:3], labels[:3], labels[:3] + 1, shares[:3])
    assert "All 3 mistakes, the most confident first" in written
    written.clear()
    canvas.save(
        pictures.mistakes(images[:1], labels[:1], labels[:1] + 1, None, ["a", "b"], ["1.png"], 1), tmp_path / "a.png"
    )
    assert "b\nis a" in written, "no share, where it is none"


def test_pictures_say_what_they_show(tmp_path: Path, written: list[str]) -> None:
    names = [f"class {i}" for i in range(41)]
    table = pd.DataFrame({"class": names, "correct": 1, "total": 2, "recall": 0.5})
    canvas.save(charts.classes(table), tmp_path / "a.png")
    canvas.save(charts.classes(table[:2]), tmp_path / "a.png")
    canvas.save(charts.confusion(torch.tensor([[3, 1], [0, 1000]]), ["few", "many"]), tmp_path / "a.png")
    canvas.save(
        pictures.examples(torch.zeros(2, 8, 8), torch.tensor([0, 1]), ["few", "many"], torch.tensor([1, 1])),
        tmp_path / "a.png",
    )
    assert {
        "Accuracy of the worst 40 of 41 classes",
        "Accuracy of each class",
        "1,003 of 1,004 test images correct",
        "right, share of the label's images",
        "wrong, share of the label's images",
        "The first training images of each class",
    } <= set(written)


RESULT = pictures.Result(
    classes=["few", "many"],
    labels=torch.tensor([0, 1, 1]),
    predicted=torch.tensor([0, 0, 1]),
    probabilities=torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]),
    is_probable=True,
    confusion=torch.tensor([[1, 0], [1, 1]]),
    per_class=pd.DataFrame(
        {"class": ["few", "many"], "correct": 1, "total": [1, 2], "recall": [1.0, 0.5]}
        | {"auroc": [1.0, np.nan], "average_precision": [1.0, np.nan]}
    ),
    curve=lambda label: (
        curve(torch.tensor([0.9, 0.6, 0.2]), torch.tensor([True, False, False])) if label == 0 else None
    ),
    calibration=bins(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 1, 1]), 10),
    files=["a.png", "b.png", "c.png"],
    images=torch.zeros(3, 8, 8, dtype=torch.uint8).__getitem__,
    training_labels=torch.tensor([0, 1]),
    training_images=torch.zeros(2, 8, 8, dtype=torch.uint8).__getitem__,
)


def test_a_function_in_the_table_is_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: list[str]
) -> None:
    before = dict(pictures.pictures(RESULT))
    assert before.keys() == {"confusion", "classes", "curves", "reliability", "mistakes", "examples"}
    improbable = dict(pictures.pictures(replace(RESULT, is_probable=False)))
    assert before.keys() - improbable.keys() == {"reliability"}
    canvas.save(before["curves"], tmp_path / "c.png")
    assert {"1.000 few", "ROC of each class", "Precision, recall of each class"} <= set(written)
    canvas.save(before["reliability"], tmp_path / "d.png")
    assert "Expected calibration error 0.3000" in written
    canvas.save(before["mistakes"], tmp_path / "a.png")
    assert {"b.png", "few 60%\nis many"} <= set(written)
    canvas.save(before["examples"], tmp_path / "b.png")
    assert {"few\n1 image", "many\n1 image"} <= set(written)
    monkeypatch.setitem(pictures.PICTURES, "mine", lambda _result: Figure())
    assert dict(pictures.pictures(RESULT)).keys() == before.keys() | {"mine"}
    with pytest.raises(InputError, match=r"PICTURES in stages/report/pictures\.py: 'mine' is the name of what stands"):
        dict(pictures.pictures(RESULT, taken=["mine"]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("confusion", "'mine' is 'confusion', should be a class or function"),
        (print, "'mine' gives None, should be a Figure"),
    ],
)
def test_what_is_no_picture(entry: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pictures.PICTURES, "mine", entry)
    with pytest.raises(InputError, match=message):
        dict(pictures.pictures(RESULT))


@pytest.mark.parametrize("n", [2, 10, 20, 21])
def test_mistakes_in_a_confusion_matrix_are_orange(tmp_path: Path, n: int) -> None:
    table = 9 * torch.eye(n, dtype=torch.int64)
    table[0, 1] = 9
    canvas.save(charts.confusion(table, [f"{'a long name ' * 5}{i}" for i in range(n)]), tmp_path / "a.png")
    image = drawn(tmp_path / "a.png")
    warm = image[:, : int(0.7 * image.shape[1]), 0] - image[:, : int(0.7 * image.shape[1]), 2]
    wrong, right = (warm > 0.3).nonzero(), (warm < -0.3).nonzero()
    assert wrong[0].size > 100
    assert wrong[0].max() < right[0].max(), "above the second row's cell"
    assert wrong[1].min() > right[1].min(), "right of the first row's cell"

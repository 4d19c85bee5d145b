"""Pictures, read back pixel by pixel where that can be said in numbers."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from stages.nets.net import Net, activations
from stages.report import pictures


def drawn(path: Path) -> np.ndarray:
    """The picture as float (h, w, 3); all should be legible where MLflow shows them: 300 to 1,000 pixels wide."""
    image = matplotlib.image.imread(path)[:, :, :3]
    assert 300 <= image.shape[1] <= 1000
    return image


def near(image: np.ndarray, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of about this colour, 0 to 255 a channel."""
    rows, columns = (np.abs(image * 255 - colour).max(axis=2) < 2).nonzero()
    return rows, columns


def test_tiles_stand_in_rows_with_gaps() -> None:
    axes = Figure().subplots()
    images = [torch.full((8, 8), float(value)) for value in (1, 2, 3)]
    assert pictures._tiles(axes, images, columns=2) == (9, 9)
    canvas: np.ndarray = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
    assert canvas.shape == (18, 18)
    assert (canvas[:8, :8] == 1).all()
    assert (canvas[:8, 9:17] == 2).all()
    assert (canvas[9:17, :8] == 3).all()
    assert np.isnan(canvas[8]).all()
    assert np.isnan(canvas[9:, 9:]).all()


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
    pictures.learning_curves(tmp_path / "a.png", pd.DataFrame({"epoch": [1, 2, 3]} | curves), chosen)
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
    pictures.confusion(tmp_path / "a.png", torch.tensor([[3, 0], [0, 300]]), ["few", "many"])
    rows, columns = near(drawn(tmp_path / "a.png"), (8, 48, 107))  # the darkest of Blues
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
    picked = (labels[wrong], predicted[wrong], probabilities[wrong])
    pictures.mistakes(path, images[wrong], *picked, [f"${i}_$" for i in range(200)], count)
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
    pictures.examples(tmp_path / "a.png", images, torch.tensor([1, 0, 1, 0, 0]), ["dark", "light"])
    image = drawn(tmp_path / "a.png")
    dark, light = (near(image, (value, value, value))[0] for value in (40, 200))
    assert np.median(dark) < np.median(light)
    assert len(dark) > 1.3 * len(light), "three against two"


def test_colours_are_drawn_as_they_are(tmp_path: Path) -> None:
    colours = [(200, 40, 90), (20, 160, 60)]
    images = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(2, 3, 8, 8)
    labels = torch.tensor([0, 1])
    pictures.examples(tmp_path / "a.png", images, labels, ["one", "other"])
    both = [mistakes(tmp_path / "b.png", images, labels, 1 - labels, torch.eye(2)), drawn(tmp_path / "a.png")]
    for image in both:
        one, other = (near(image, colour) for colour in colours)
        assert len(one[0]) == pytest.approx(len(other[0]), rel=0.1)
        assert len(one[0]) > 1000
    assert near(both[1], (255, 255, 255))[0].size > both[1].size / 3 / 2, "what no image fills stays white"


def test_large_images_are_averaged_to_tiles() -> None:
    images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    images[:, 1, ::2] = 100
    small = pictures._small(images)
    assert small.shape == (2, 3, pictures.TILE, pictures.TILE)
    assert small[:, 1].mean().item() == pytest.approx(50, abs=0.5)
    assert pictures._small(images[:, 0, :8, :9]).shape == (2, 8, 9)
    assert pictures._small(torch.zeros(1, 1, 1000)).shape == (1, 1, pictures.TILE)


def test_a_hundred_classes_fit_on_a_page(tmp_path: Path) -> None:
    names = [f"{'a long name ' * 5}{i}" for i in range(100)]
    labels = torch.arange(1300) % 100
    first = pictures.first_of_each(labels, 100)
    assert first.tolist() == [100 * k + label for label in range(pictures.ROWS) for k in range(12)]
    images = torch.randint(256, (len(first), 3, 224, 224), dtype=torch.uint8)
    pictures.examples(tmp_path / "examples.png", images, labels[first], names)
    pictures.confusion(tmp_path / "confusion.png", torch.eye(100, dtype=torch.int64) * 13, names)
    table = pd.DataFrame({"class": names, "correct": 13, "total": 13, "recall": 1.0})
    pictures.classes(tmp_path / "classes.png", table)
    for path in tmp_path.iterdir():
        assert drawn(path).shape[0] <= 1600


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (6, 1, 5, 5), (32, 2, 3, 3), (768, 3, 16, 16)])
def test_filters_of_any_first_convolution(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    weight[0, 0] = 1.0  # the largest: red
    pictures.filters(tmp_path / "a.png", "conv1", weight)
    image = drawn(tmp_path / "a.png")
    red = (255, 128, 128) if shape[1] == 3 else (103, 0, 31)  # of the three, the others are at zero, which is grey
    rows, columns = near(image, red)
    assert len(rows) > 1000
    assert columns.max() < image.shape[1] / 2


@pytest.mark.parametrize("arguments", [{}, {"image_size": 28, "widths": [10, 20], "kernel": 3}])
def test_filters_and_activations_of_every_convolution(tmp_path: Path, arguments: dict[str, object]) -> None:
    net = Net(10, **arguments)  # type: ignore[arg-type]
    side = int(arguments.get("image_size", 8))  # type: ignore[call-overload]
    pixels = torch.randint(256, (side, side), dtype=torch.uint8)
    x = pixels[None, None].float() - 128
    for name, before, after, pooled in activations(net, x):
        assert torch.equal(before, net.get_submodule(name)(x))
        assert torch.equal(after, before.clamp(min=0))
        assert torch.equal(pooled, torch.nn.functional.max_pool2d(after, 2))
        x = pooled
        pictures.filters(tmp_path / f"f_{name}.png", name, net.get_parameter(f"{name}.weight").detach())
        pictures.activations(tmp_path / f"a_{name}.png", name, pixels, before[0], after[0], pooled[0])
    for number in range(1, len(net.convolutions) + 1):
        for kind in ("f", "a"):
            image = drawn(tmp_path / f"{kind}_conv{number}.png")
            blue, red = image[:, :, 2] > image[:, :, 0] + 0.1, image[:, :, 0] > image[:, :, 2] + 0.1
            assert min(blue.mean(), red.mean()) > 0.01, "there are negative and positive values"

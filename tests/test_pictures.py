"""Pictures, read back pixel by pixel where that can be said in numbers."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from stages import pictures
from stages.nets import Net, activations


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


def test_learning_curves_mark_the_chosen_epoch(tmp_path: Path) -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2, 3]} | {f"{s}/{q}": [1.0, 0.5, 0.2] for s in ("train", "valid") for q in ("loss", "accuracy")}
    )
    pictures.learning_curves(tmp_path / "a.png", history, chosen=2)
    pictures.learning_curves(tmp_path / "b.png", history, chosen=3)
    assert not np.array_equal(drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png"))


def test_confusion_colours_by_the_share_of_the_row(tmp_path: Path) -> None:
    pictures.confusion(tmp_path / "a.png", torch.tensor([[3, 0], [0, 300]]), ["few", "many"])
    rows, columns = near(drawn(tmp_path / "a.png"), (8, 48, 107))  # the darkest of Blues
    few = rows < (rows.min() + rows.max()) / 2
    # Both cells of the diagonal are full, whatever their counts.
    assert columns[few].max() < columns[~few].min()
    assert few.sum() == pytest.approx((~few).sum(), rel=0.1)


def test_mistakes_of_a_perfect_net(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1])
    pictures.mistakes(
        tmp_path / "a.png", torch.zeros(2, 8, 8, dtype=torch.uint8), labels, labels, torch.eye(2), ["a", "b"]
    )
    assert drawn(tmp_path / "a.png").min() < 0.5, "it says that there are none"


def test_the_most_confident_mistake_comes_first(tmp_path: Path) -> None:
    images = torch.stack([torch.full((8, 8), value, dtype=torch.uint8) for value in (60, 120, 180)])
    labels, predicted = torch.tensor([0, 0, 0]), torch.tensor([1, 0, 1])
    probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    pictures.mistakes(tmp_path / "a.png", images, labels, predicted, probabilities, ["a", "b"])
    image = drawn(tmp_path / "a.png")
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

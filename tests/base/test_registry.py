"""docs/choices.md says what the tables say, and every choice trains the digits with defaults of its own."""

import re
from pathlib import Path

import pytest

from bench.choices import accuracy, advance, shown
from stages.training import losses, optimizers, schedules
from tests.conftest import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/choices.md").read_text().splitlines()
    if re.match(r"\| [A-Z]", line)
]
TRAINED = [
    *((loss, optimizer, "OneCycleLR") for loss in losses.LOSSES for optimizer in ("SGD", "AdamW")),
    *(("CrossEntropyLoss", name, "OneCycleLR") for name in optimizers.OPTIMIZERS if name not in ("SGD", "AdamW")),
    *(("CrossEntropyLoss", "SGD", name) for name in schedules.SCHEDULES if name != "OneCycleLR"),
]


def test_the_page_says_what_the_tables_say() -> None:
    said = [row[:4] if row[0] in losses.LOSSES else row[: 3 if row[0] in schedules.SCHEDULES else 2] for row in ROWS]
    assert said == [
        *([name, loss.input.name, loss.target.name, losses.output(name)] for name, loss in losses.LOSSES.items()),
        *([name, why] for name, why in losses.REFUSED.items()),
        *([name, shown(defaults)] for name, defaults in optimizers.OPTIMIZERS.items()),
        *([name, why] for name, why in optimizers.REFUSED.items()),
        *([name, *advance(name)] for name in schedules.SCHEDULES),
        *([name, why] for name, why in schedules.REFUSED.items()),
    ]


def test_all_figures_of_the_page_are_above_0_90() -> None:
    figures = re.findall(r"(0\.\d+) to (0\.\d+)", (ROOT / "docs/choices.md").read_text())
    assert len(figures) == 2 * len(losses.LOSSES) + len(optimizers.OPTIMIZERS) + len(schedules.SCHEDULES)
    assert min(float(low) for low, _ in figures) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "optimizer", "schedule"), TRAINED)
def test_naming_it_is_enough(
    digits: Path, monkeypatch: pytest.MonkeyPatch, loss: str, optimizer: str, schedule: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert accuracy(digits, loss, optimizer, schedule, seed=3) > 0.9

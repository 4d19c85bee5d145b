"""What is said of runs: figures that can be compared, those that cannot, and how sure a difference is."""

import json
import re
from dataclasses import replace

import pytest

from tools.comparison import compare, verdict
from tools.runs import EvaluatedRun, Runs


def trained_with(run: EvaluatedRun, loss: str, **arguments: object) -> EvaluatedRun:
    """The run as if it had been trained with this loss."""
    given = {f"train.loss.arguments.{loss}.{name}": json.dumps(value) for name, value in arguments.items()}
    return replace(run, params=run.params | {"train.loss.name": loss} | given)


def with_right(run: EvaluatedRun, right: range) -> EvaluatedRun:
    """The run as if it had classified just the images at these places correctly."""
    table = run.predictions.copy()
    table["predicted"] = [label if place in right else "?" for place, label in enumerate(table["label"])]
    return replace(run, predictions=table)


def cells(runs: list[EvaluatedRun], metric: str) -> list[str]:
    return next(cells for name, *cells in compare(runs).tables["metrics"] if name == metric)


def test_losses_of_different_functions_are_said_to_be_so(store: Runs) -> None:
    run, other = store.find("seed-0"), store.find("seed-1")
    assert compare([run, other]).remarks == []
    (remark,) = compare([run, trained_with(other, "NLLLoss")]).remarks
    assert remark == "test/loss is of different loss functions (CrossEntropyLoss; NLLLoss): do not compare it"
    (remark,) = compare([run, trained_with(other, "CrossEntropyLoss", label_smoothing=0.1)]).remarks
    assert "(CrossEntropyLoss; CrossEntropyLoss, label_smoothing: 0.1)" in remark
    both = [trained_with(each, "CrossEntropyLoss", label_smoothing=0.1) for each in (run, other)]
    assert compare(both).remarks == []
    # What another loss would be given plays no part.
    unused = replace(other, params=other.params | {"train.loss.arguments.MSELoss.reduction": "sum"})
    assert compare([run, unused]).remarks == []


def test_scores_that_are_no_probabilities_have_no_calibration_error(store: Runs) -> None:
    run, other = store.find("seed-0"), trained_with(store.find("seed-1"), "MSELoss")
    assert cells([run, other], "test/ece") == [f"{run.metrics['test/ece']:.6g}", "-"]
    assert cells([run, other], "test/accuracy")[1] == f"{other.metrics['test/accuracy']:.6g}"
    assert compare([run, other]).remarks[1] == (
        "test/ece is of probabilities, and scores trained with MSELoss give none"
    )
    assert cells([run, trained_with(other, "a loss of ours that is gone")], "test/ece")[1] == "-"


def test_settings_used_are_compared_beyond_the_parameters(store: Runs) -> None:
    title, run = "settings used that differ", store.find("seed-0")
    assert compare([run, store.find("seed-1")]).tables[title] == []
    # The learning rate is in the parameters already; Adam's own betas are not.
    given = run.params | {"train.optimizer.name": "Adam", "train.optimizer.lr": "0.01"}
    adam = replace(run, params=given, used=run.used | {"optimizer.lr": "0.01", "optimizer.betas": "[0.9, 0.999]"})
    first = replace(run, params=run.params | {"train.optimizer.lr": "0.03"})
    assert compare([first, adam]).tables[title] == [["optimizer.betas", "-", "[0.9, 0.999]"]]
    assert compare([run, adam]).tables[title] == [
        ["optimizer.betas", "-", "[0.9, 0.999]"],
        ["optimizer.lr", "0.03", "0.01"],
    ]
    assert compare([run, replace(adam, used={})]).tables[title] == [], "a run of before they were logged"


def test_remarks_on_names(store: Runs) -> None:
    run = replace(store.find("seed-0"), remark="best is one of two")
    assert compare([run, store.find("seed-0")]).remarks == ["best is one of two", "a run is named more than once"]


@pytest.mark.parametrize(
    ("first", "second", "p", "conclusion"),
    [
        (range(20), range(20), "p = 1.0000", "No difference can be told (p >= 0.05)."),
        (range(9), range(9, 10), "p = 0.0215", "The difference is real: seed-0 is better (p < 0.05)."),  # 22 / 1024
        (range(14), range(0), "p = 0.0001", "seed-0 is better"),  # 2 / 2^14 = 0.000122
        (range(0), range(16), "p < 0.0001", "seed-1 is better"),  # 2 / 2^16 = 0.000031
    ],
)
def test_p_is_never_nought(store: Runs, first: range, second: range, p: str, conclusion: str) -> None:
    text = verdict(with_right(store.find("seed-0"), first), with_right(store.find("seed-1"), second))
    assert f"McNemar's exact test: {p}.\n" in text
    assert conclusion in text


PATCH = (
    "diff --git a/params.yaml b/params.yaml\n+  seed: {}\ndiff --git a/stages/train.py b/stages/train.py\n+lr *= {}\n"
)


def test_the_same_code_has_the_same_contents(store: Runs) -> None:
    title, runs = "code that differs", [store.find(name) for name in ("seed-0", "seed-1")]
    assert compare(runs).tables[title] == []
    same = [replace(run, patch=PATCH.format(seed, 2)) for seed, run in enumerate(runs)]
    assert compare(same).tables[title] == []
    assert len(compare(same).verdicts) == 2
    edited = [replace(run, patch=PATCH.format(0, factor)) for factor, run in enumerate(runs)]
    [[name, *cells]] = compare(edited).tables[title]
    assert name == "changed files"
    assert [re.sub(r"\(\w{8}\)$", "(…)", cell) for cell in cells] == ["stages/train.py (…)"] * 2
    assert len(compare(edited).verdicts) == 1, "they differ in more than their seed"
    tagged = [runs[0], replace(runs[1], tags=runs[1].tags | {"git.untracked": "stages/nets/mine.py"})]
    assert compare(tagged).tables[title] == [["untracked files", "none", "stages/nets/mine.py"]]
    assert len(compare(tagged).verdicts) == 1


@pytest.mark.parametrize("what", ["training", "validation", "used"])
def test_only_runs_that_differ_in_their_seed_alone_are_averaged(store: Runs, what: str) -> None:
    one, two = (store.find(name) for name in ("seed-0", "seed-1"))
    other = (
        replace(two, used=two.used | {"optimizer.momentum": "0.8"})
        if what == "used"
        else replace(two, data=two.data | {what: "digits 0123456789abcdef"})
    )
    assert len(compare([one, two]).verdicts) == 2
    assert len(compare([one, other]).verdicts) == 1


def test_seeds_are_averaged(store: Runs) -> None:
    comparison = compare([store.find(name) for name in ("seed-0", "seed-1", "closed")])
    texts = []
    for figure in ("accuracy", "macro_f1"):
        one, two = (store.find(name).metrics[f"test/{figure}"] for name in ("seed-0", "seed-1"))
        half = 12.7062 * abs(one - two) / 2  # Student's t with one degree of freedom, times the standard error of two
        texts.append(f"{(one + two) / 2:.4f} ± {half:.4f}")
    assert comparison.verdicts[2:] == [
        f"seed-0, seed-1: {texts[0]}, macro F1 {texts[1]} over 2 seeds, 95 % intervals of the mean."
    ]

"""Where configurations come from, and what a search remembers when it is run again."""

import sys
from pathlib import Path

import pytest

from stages.base.errors import InputError
from tools.sweep.overrides import parse
from tools.sweep.search import Grid, Proposal, Search

AXES = parse(["lr=tag(log,interval(1e-4,1))", "widths=[16],[32]", "epochs=int(interval(2,4))", "fixed=7"])


def test_a_grid_proposes_each_combination_once() -> None:
    source = Grid(parse(["a=1,2", "b=3"]))
    assert source.size == 2
    assert [source.ask(), source.ask(), source.ask()] == [
        Proposal(0, {"a": "1", "b": "3"}),
        Proposal(1, {"a": "2", "b": "3"}),
        None,
    ]


def test_a_search_proposes_within_the_intervals(tmp_path: Path) -> None:
    source = Search(AXES, 20, tmp_path / "journal")
    proposals = []
    while proposal := source.ask():
        proposals.append(proposal)
        source.tell(proposal.number, 0.5)
    assert [proposal.number for proposal in proposals] == list(range(20))
    for proposal in proposals:
        assert 1e-4 <= float(proposal.values["lr"]) <= 1
        assert proposal.values["widths"] in ("[16]", "[32]")
        assert proposal.values["epochs"] in ("2", "3", "4")
        assert proposal.values["fixed"] == "7"
    assert len({proposal.values["lr"] for proposal in proposals}) == 20


def test_values_of_a_narrow_interval_are_told_apart_and_stay_in_it(tmp_path: Path) -> None:
    axes = parse(["a=interval(0.999,0.99999)", "b=tag(log,interval(0.999,0.99999))", "c=interval(-1,1)"])
    source, found = Search(axes, 60, tmp_path / "journal"), list[dict[str, str]]()
    while proposal := source.ask():
        found.append(proposal.values)
        source.tell(proposal.number, 0.5)
    for key in ("a", "b"):
        assert all(0.999 <= float(values[key]) <= 0.99999 for values in found)
        assert len({values[key] for values in found}) > 50
    assert all(len(text.strip("-0.")) <= 9 for values in found for text in values.values()), "names are made of them"


def test_a_search_finds_what_is_better(tmp_path: Path) -> None:
    source = Search(parse(["x=interval(0,1)"]), 40, tmp_path / "journal")
    tried = []
    while proposal := source.ask():
        tried.append(float(proposal.values["x"]))
        source.tell(proposal.number, 1 - abs(tried[-1] - 0.2))
    late = tried[20:]
    assert sum(abs(x - 0.2) < 0.15 for x in late) > len(late) / 2, "by chance it would be 30 %"


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Search(AXES, 6, tmp_path / "journal")
    proposals = [first.ask() for _ in range(4)]
    first.tell(0, 0.9)
    first.tell(1, None)
    first.tell(2, None, pruned=True)  # and number 3 was running when the process was killed

    second = Search(AXES, 6, tmp_path / "journal")
    again = [second.ask() for _ in range(7)]
    known = [proposal for proposal in again if proposal]
    assert [proposal.number for proposal in known] == [0, 1, 2, 3, 4, 5]
    assert [proposal.values for proposal in known[:4]] == [proposal.values for proposal in proposals if proposal]
    assert [proposal.pruned for proposal in known] == [False, False, True, False, False, False]
    assert again[6] is None
    second.tell(0, 0.9)  # once more, as when its experiments were found done
    assert not second.is_hopeless(1, 2, 0.0), "it failed, and is tried again"
    second.tell(1, 0.7)
    second.tell(3, 0.8)


def test_what_falls_behind_is_hopeless(tmp_path: Path) -> None:
    source = Search(parse(["x=interval(0,1)"]), 10, tmp_path / "journal")
    for number in range(5):
        source.ask()
        hopeless = [source.is_hopeless(number, epoch, 0.8 + 0.01 * epoch) for epoch in (1, 2, 3)]
        assert hopeless == [False] * 3
        source.tell(number, 0.83)
    source.ask()
    assert not source.is_hopeless(5, 1, 0.1), "the first epoch says little"
    assert source.is_hopeless(5, 2, 0.1)
    source.ask()
    assert not source.is_hopeless(6, 2, 0.9)
    assert not source.is_hopeless(6, 2, 0.9), "the same epoch again, of a second attempt"


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"--search needs Optuna: pip install -e '\.\[search\]'"):
        Search(AXES, 2, tmp_path / "journal")

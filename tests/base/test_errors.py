from stages.base.errors import lines, listed


def test_a_short_list_is_given_in_full() -> None:
    assert listed([]) == ""
    assert listed(["a", 2], most=2) == "a, 2"
    assert lines([]) == []
    assert lines(["a", 2], most=2) == ["  a", "  2"]


def test_a_long_list_says_how_many_there_are_besides() -> None:
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert listed(range(1234), most=1) == "0 and 1,233 more"
    assert lines(["a", "b", "c"], most=2) == ["  a", "  b", "  and 1 more"]
    assert lines(range(1234), most=1) == ["  0", "  and 1,233 more"]


def test_twenty_are_given_by_default() -> None:
    items = [f"i{number}" for number in range(21)]
    assert listed(items[:20]) == ", ".join(items[:20])
    assert listed(items) == ", ".join(items[:20]) + " and 1 more"
    assert lines(items) == [*(f"  {item}" for item in items[:20]), "  and 1 more"]


def test_any_iterable_is_taken_and_read_once() -> None:
    assert listed((letter for letter in "abc"), most=2) == "a, b and 1 more"
    assert lines((letter for letter in "abc"), most=2) == ["  a", "  b", "  and 1 more"]

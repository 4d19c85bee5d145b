"""The command line of a sweep."""

import pytest

from tools.sweep.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "train.seed=1", "--jobs", "0"], "argument --jobs: '0' is not a whole number of at least 1"),
        (["-S", "train.seed=1", "--retries", "-1"], "argument --retries: '-1' is not a whole number of at least 0"),
        ([], "give at least one -S KEY=VALUES"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sweep", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err

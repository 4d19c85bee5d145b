"""What is shown of names and of URLs."""

import pytest

from stages.base.text import harmless, printable, say, shown_url, warn


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("http://token@host", "http://***@host"),
        ("https://user:se@cret@host/x", "https://***@host/x"),
        ("postgresql://user:se/cr#et@host/db", "postgresql://***@host/db"),
        (
            "https://host/x?api_key=secret&page=2&X-Amz-Signature=secret",
            "https://host/x?api_key=***&page=2&X-Amz-Signature=***",
        ),
        ("to http://u:secret@h/a failed, http://u:secret@h/b too", "to http://***@h/a failed, http://***@h/b too"),
        ("mssql://h/db?PWD=secret;driver=x", "mssql://h/db?PWD=***;driver=x"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////home/a@b/Tom's C#/mlflow.db", "sqlite:////home/a@b/Tom's C#/mlflow.db"),
        ("models:/repronet@champion", "models:/repronet@champion"),
    ],
)
def test_what_is_secret_in_a_url_is_not_shown(given: str, shown: str) -> None:
    assert shown_url(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain é 猫 [b] \\", "plain é 猫 [b] \\"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\tc\x07\x9b", r"a\rb\tc\x07\x9b"),
        ("gpj.\u202exe", r"gpj.\u202exe"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
    ],
)
def test_a_terminal_is_given_no_orders(given: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harmless(given) == shown
    say(given)
    warn(given)
    assert capsys.readouterr() == (shown + "\n", shown + "\n")


def test_names_in_lists_are_one_line() -> None:
    assert printable("a cat.png") == "a cat.png"
    assert printable("a\ncat.png") == r"'a\ncat.png'"

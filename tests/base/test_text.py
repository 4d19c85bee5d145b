"""What is shown of URLs."""

import pytest

from stages.base.text import shown_url


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

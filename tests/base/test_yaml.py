"""YAML of others: the values that it stands for, and what would fill the memory, last for minutes or run code."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.base.errors import InputError
from stages.base.params import load_params
from stages.base.yaml import DEEPEST, LARGEST, MOST_VALUES, read_yaml
from stages.tracking.result import ResultFiles
from tests.conftest import ROOT
from tools.dvclock import as_yaml
from tools.sweep.overrides import check


def bomb(first: str, level: str, levels: int = 9) -> bytes:
    """The text of a value b0, and of others that each hold nine times the one before: 9 ** levels in all."""
    lines = [f"b0: &b0 {first}"]
    lines += [f"b{i}: &b{i} " + level % ", ".join([f"*b{i - 1}"] * 9) for i in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb("[x, x, x, x, x, x, x, x, x]", "[%s]"), "it is too large; accepted: up to 100,000 values"),
        (bomb("{a: 1}", "{<<: [%s]}"), "it is too large"),
        (bomb("x", "{a: [%s]}"), "it is too large"),
        (b"a: &a [*a]", "it is too large"),
        (b"a: &a {b: {c: *a}}", "it is too large"),
        (b"[" * 100_000, "it is too large; .* 50 levels"),
        (b"- " * 1000, "it is too large"),
        (b"- x\n" * (MOST_VALUES + 1), "it is too large"),
        (b"#" * (LARGEST + 1), "it has 2,000,001 bytes; accepted: up to 2,000,000"),
        (b"a: !!python/object/apply:os.system [exit]", "it is not YAML: could not determine a constructor"),
        (b"a: !run x", "it is not YAML: could not determine a constructor"),
        (b"a: 2026-99-99", "it is not YAML: month must be"),
        (b"a: [", "it is not YAML"),
        (b"a: *b", "it is not YAML: found undefined alias 'b'"),
        (b"a: 1\na: 2", "it is not YAML: .*duplicate key"),
        (b"a: \xff", "it is not YAML"),
        (b"\x00", "it is not YAML"),
        (b"--- 1\n--- 2", "it is not YAML: .*single document"),
    ],
)
def test_one_line_says_what_is_wrong(content: bytes, message: str) -> None:
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"(?s)^{message}"):
        read_yaml(content, "it")
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", None),
        (b"a: 1e-3", {"a": 0.001}),
        (b"a: &a [1, 2]\nb: *a\nc: {d: *a}", {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}),
        (b"a: &a {x: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        (b"a: &a 1\nb: &a 2\nc: *a", {"a": 1, "b": 2, "c": 2}),
        (b"[" * DEEPEST + b"]" * DEEPEST, eval("[" * DEEPEST + "]" * DEEPEST)),
        (b"- &a [x, x, x]\n" + b"- *a\n" * 20_000, [["x"] * 3] * 20_001),
    ],
)
def test_what_is_within_the_limits_is_read(content: bytes, value: object) -> None:
    assert read_yaml(content, "it") == value


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("params.yaml", load_params),
        ("params.yaml", lambda path: check(["train.seed=1"], path.read_text())),
        ("dvc.lock", lambda path: ResultFiles(path, path, path, path, path, path.parent).lock()),
    ],
)
def test_every_reader_has_the_limits(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    arguments = "    arguments: {}        # by class name; to try one"
    assert text.count(arguments) == 1
    levels = bomb("[1, 1, 1]", "[%s]").decode().replace("\n", ", ")
    (tmp_path / name).write_text(text.replace(arguments, f"    arguments: {{CrossEntropyLoss: {{{levels}}}}}  # {{"))
    with pytest.raises(InputError, match=r"is too large; accepted: up to 100,000 values"):
        read(tmp_path / name)
    assert as_yaml((tmp_path / name).read_bytes()) == {}, "of a commit, which then has no result"

"""YAML of others, read with the parser of YAML 1.2 that DVC uses: PyYAML would read 1e-3 as a text."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from stages.base.errors import InputError

# An alias stands for all that its anchor holds, so a short file of aliases to aliases fills any memory.
LARGEST, MOST_VALUES, DEEPEST = 2_000_000, 100_000, 50


def read_yaml(content: bytes, title: str) -> Any:
    """Return what YAML holds. Raises InputError, which begins with the title, if it is wrong, or too large to be read.

    Too large are more than LARGEST bytes, more than MOST_VALUES values with those that aliases stand for, and values
    more than DEEPEST levels down. Tags that name code are errors.
    """
    if len(content) > LARGEST:
        raise InputError(f"{title} has {len(content):,} bytes; accepted: up to {LARGEST:,}")
    try:
        _check_size(content, title)
        return YAML(typ="safe", pure=True).load(content)
    except InputError:
        raise
    except Exception as error:  # besides YAMLError what values of its types raise, such as the 99th of a month
        raise InputError(f"{title} is not YAML: {error}") from error


def _check_size(content: bytes, title: str) -> None:
    values, open_ones, sizes = 0, list[tuple[str | None, int]](), dict[str, int]()
    for event in YAML(typ="safe", pure=True).parse(content):
        if isinstance(event, AliasEvent):
            # What is still open would hold itself, without an end.
            endless = any(anchor == event.anchor for anchor, _ in open_ones)
            values += MOST_VALUES if endless else sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
            if isinstance(event, CollectionStartEvent):
                open_ones.append((event.anchor, values))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, start = open_ones.pop()
            if anchor:
                sizes[anchor] = 1 + values - start
        if values > MOST_VALUES or len(open_ones) > DEEPEST:
            limits = f"{MOST_VALUES:,} values, those that aliases stand for included, and {DEEPEST} levels"
            raise InputError(f"{title} is too large; accepted: up to {limits}")

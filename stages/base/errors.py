"""What the user got wrong, and how a message says so."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something that the user gave is wrong; the message names it, its value and what is accepted."""


def unknown(given: str, accepted: Collection[str]) -> str:
    """Return what to say after "unknown": which of the accepted names may be meant, and all of them."""
    names = {name.lower(): name for name in accepted}
    close = get_close_matches(given.lower(), names, n=1)
    hint = f" (did you mean {names[close[0]]}?)" if close else ""
    return f"{hint}; accepted: {', '.join(accepted)}"


def listed(items: Iterable[object], most: int = 20) -> str:
    """Return the first `most` items in one line, and how many there are besides."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def lines(items: Iterable[object], most: int = 20) -> list[str]:
    """Return the first `most` items, one an indented line, and a line that says how many there are besides."""
    texts = [str(item) for item in items]
    more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
    return [f"  {text}" for text in [*texts[:most], *more]]

"""How texts that came from elsewhere are shown: names, labels, paths, URLs, what other programs said."""

import re
import sys
from contextlib import suppress

USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#@:]*:[^\s@]*@)")
SECRET = re.compile(r"(?i)([?&;][^=&;\s]*(?:pass|pwd|secret|token|key|sig|cred|auth)[^=&;\s]*=)[^&;\s'\"#]+")


def say(text: str) -> None:
    """Print to the standard output, at once: the one way to do so."""
    print(harmless(text), flush=True)


def warn(text: str) -> None:
    """Print to the standard error: the one way to do so."""
    with suppress(OSError):  # it may be a closed pipe
        sys.stdout.flush()  # what Ctrl-C has kept `say` from showing comes before, not after
    print(harmless(text), file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Return a text with escapes for all that a terminal would obey instead of showing, but for line breaks."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(text: str) -> str:
    """Return a text as `harmless` does, with escapes for line breaks, too."""
    return harmless(text).replace("\n", "\\n")


def printable(text: object) -> str:
    """Return a name as it is, or quoted with escapes where a terminal, or a line of a list, would not show it."""
    return str(text) if str(text).isprintable() else repr(text)


def utf8(text: str) -> str:
    """Return a name with escapes for what UTF-8 cannot hold, such as the bytes of a file's name in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def shown_url(text: str) -> str:
    """Return a URL, or a text with some, without what is secret in them: user, password, keys among their options."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))

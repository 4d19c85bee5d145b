"""What may be shown of texts that came from elsewhere."""

import re

USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#@:]*:[^\s@]*@)")
SECRET = re.compile(r"(?i)([?&;][^=&;\s]*(?:pass|pwd|secret|token|key|sig|cred|auth)[^=&;\s]*=)[^&;\s'\"#]+")


def shown_url(text: str) -> str:
    """Return a URL, or a text with some, without what is secret in them: user, password, keys among their options."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))

"""What pages have in common that need no other file: pictures are in them, and texts of others are escaped."""

import base64
from html import escape

from stages.base.text import harmless

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
h2 { font-size: 1.15em; margin: 2em 0 .4em } h3 { font-size: 1em; margin: 1em 0 .4em } p { white-space: pre-line }
div { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .25em 1.5em .25em 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  max-width: 22em; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
tr.title th { padding-top: 1.2em } td:first-child { color: #666 } a { color: #2166ac }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; font-size: .85em; overflow-wrap: anywhere }
figure.image { width: 13em } figure.image img { width: 96px; image-rendering: pixelated; display: block }
figure.matrix { max-width: 36em } img { max-width: 100% } small { color: #666 }
"""


def text(content: str) -> str:
    """Return a text as HTML that a browser shows as it is."""
    return escape(harmless(content))


def embedded(kind: str, content: bytes) -> str:
    """Return the address of a picture that is in the page, such as one of kind png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

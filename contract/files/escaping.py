"""Text from data, safe on a page: names of domains, tasks and models are whatever their makers wrote."""

from __future__ import annotations

import html
import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, marks that turn the direction of what follows, and what XML does not have."""
_MARKUP = re.compile(r"[\[\]\\|`]")
"""What makes links, code and cells in Markdown, and the backslash, which would undo the one that is put before them."""


def visible(text: str) -> str:
    """The text with a replacement character for everything that only moves or breaks what is around it."""
    return _UNSEEN.sub("\ufffd", text)


def markdown_text(text: str) -> str:
    """One line that Markdown shows as it is: no HTML, no link, no cell or line of its own."""
    line = html.escape(visible(text).replace("\n", " ").replace("\t", " "), quote=False)
    return _MARKUP.sub(r"\\\g<0>", line)

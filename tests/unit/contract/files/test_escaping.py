"""Names from data do nothing on a page but stand there."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from fusionx.contract.files.escaping import markdown_text, visible

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/pixel.png)",
    "\\[click\\](https://example.org)",
    "`a` ``` | b |",
    "a | b\n| c |",
    "safe\u202egpj.exe",
    "\x1b[31mred",
]


def test_attacks_stay_text() -> None:
    for attack in ATTACKS:
        shown = markdown_text(attack)
        assert "<" not in shown
        assert "\n" not in shown
        assert not re.search(r"(?<!\\)(\\\\)*[\[\]|`]", shown), shown
        assert "\u202e" not in shown
        assert "\x1b" not in shown


@given(st.text())
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    if text.isalnum() and text.isprintable():
        assert markdown_text(text) == visible(text) == text
    assert len(visible(text)) == len(text)
    visible(text).encode()

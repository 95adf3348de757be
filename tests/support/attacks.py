"""What a corpus may call its domains, or say: text that would do something if it were not written as text."""

from __future__ import annotations

SCRIPTS = (
    "<script>alert(1)</script>",
    "</title></style></textarea><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<a href='javascript:alert(1)'>read on</a>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'>",
    "<p onmouseover=alert(1)>move here</p>",
)
"""Each runs where it is markup."""
IN_ATTRIBUTES = (
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '" autofocus tabindex="0" onfocus="alert(1)',
    '"><script>alert(1)</script>',
)
"""Each runs where it stands between the quotation marks of an attribute."""
IN_MARKDOWN = (
    "[read on](javascript:alert(1))",
    "\\[read on\\](javascript:alert(1))",
    "![picture](https://tracker.example/pixel.png)",
    "\\![picture\\](https://tracker.example/pixel.png)",
    "<https://tracker.example/>",
    "[x]: javascript:alert(1)",
    "`code` ``` | cell |",
)
IN_TERMINALS = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "over\rwritten",
    "safe\u202egpj.exe",
    "\u2066turned",
    "\x00\x7f\x08",
)
OTHERS = (
    "{{ 7 * 191 }}{% raw %}",
    '=HYPERLINK("https://tracker.example","x")',
    'id="a" url(#a) href="#a"',
    "$\\frac{1}{0}$",
)
ATTACKS = (*SCRIPTS, *IN_ATTRIBUTES, *IN_MARKDOWN, *IN_TERMINALS, *OTHERS)

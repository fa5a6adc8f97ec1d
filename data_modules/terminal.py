"""Make text from files, people and models safe for a terminal: control characters are shown as text."""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1; line separators and marks of writing direction; halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Show control characters as escapes, such as ESC as the four characters \x1b; every line end becomes \n."""
    lines = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], lines)


def on_one_line(text: object) -> str:
    r"""The text of `printable` on one line: each \n and \t is shown as its two-character escape."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")

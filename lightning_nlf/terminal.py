"""Texts of others on a terminal: control characters, which could rewrite it, are shown as text."""

from __future__ import annotations

import re

# C0 but tab and new line, DEL, C1; line separators and what turns the direction of writing; halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""The text in lines that end with \n; ESC is \x1b, four characters. A carriage return ends a line."""
    lines = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], lines)

"""Escape control characters in foreign text, which could otherwise manipulate the terminal."""

from __future__ import annotations

import re

# DEL, C0 except tab and newline, C1, line separators, marks of writing direction, and halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Escape control characters: ESC becomes the four characters \x1b. A carriage return becomes a newline."""
    lines = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], lines)

"""Escape text for Markdown, so that text from a model loads no images and cannot change the page around it."""

from __future__ import annotations

import re

from data_modules.terminal import printable


def escaped(text: str) -> str:
    """Escape text for use within one line, such as in a table cell."""
    return re.sub(r"[\\`*_\[\]<|~]|&(?=#?\w+;)", r"\\\g<0>", printable(text))


def word_for_word(text: str) -> str:
    """Escape text of one or more paragraphs, and keep its line breaks and indentation.

    Line breaks become hard breaks, because Markdown would join the lines. Indentation becomes no-break spaces.
    """
    text = escaped(printable(text).strip("\n").expandtabs(4))
    text = re.sub(r"(?m)^( *)([#>+=-]|\d+(?=[.)]))", _defused, text)
    text = re.sub(r"(?m)^ +", lambda spaces: "&nbsp;" * len(spaces[0]), text)
    return re.sub(r"(?<!\n)\n(?!\n)", "  \n", text)


def _defused(begins: re.Match[str]) -> str:
    """Escape the start of a line, so that the line is not a heading, quotation, rule or list item."""
    return f"{begins[1]}{begins[2]}\\" if begins[2].isdigit() else f"{begins[1]}\\{begins[2]}"

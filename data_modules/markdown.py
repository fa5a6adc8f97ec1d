"""Markdown that shows a text as it is: what a model said fetches no picture, and is no part of the page around it."""

from __future__ import annotations

import re

from data_modules.terminal import printable


def escaped(text: str) -> str:
    """What stands within a line, such as in the cell of a table."""
    return re.sub(r"[\\`*_\[\]<|~]|&(?=#?\w+;)", r"\\\g<0>", printable(text))


def word_for_word(text: str) -> str:
    """Whole paragraphs.

    With hard breaks, as Markdown would join lines that no empty one is between, and with no-break spaces before lines
    that are indented.
    """
    text = escaped(printable(text).strip("\n").expandtabs(4))
    text = re.sub(r"(?m)^( *)([#>+=-]|\d+(?=[.)]))", _defused, text)
    text = re.sub(r"(?m)^ +", lambda spaces: "&nbsp;" * len(spaces[0]), text)
    return re.sub(r"(?<!\n)\n(?!\n)", "  \n", text)


def _defused(begins: re.Match[str]) -> str:
    """A line that would be a heading, a quotation, a rule or a part of a list."""
    return f"{begins[1]}{begins[2]}\\" if begins[2].isdigit() else f"{begins[1]}\\{begins[2]}"

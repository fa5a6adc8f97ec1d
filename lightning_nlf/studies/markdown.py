"""Markdown of foreign text and of tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_nlf.terminal import printable

_MARKUP = re.compile(r"[\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: object) -> str:
    """Text on one line that Markdown shows as it is: no markup, links, HTML, maths or table cells from outside."""
    line = " ".join(printable(text).split())
    return _MARKUP.sub(lambda mark: f"\\{mark[0]}", line.replace("&", "&amp;").replace("<", "&lt;"))


def code(text: object) -> str:
    """Text on one line in a code span, also inside a table. Backticks become apostrophes."""
    line = " ".join(printable(text).split()).replace("`", "'").replace("|", r"\|")
    return f"`{line}`" if line else ""


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table of cells that are Markdown already; columns that are empty in all rows are left out."""
    columns = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    lines = [[titles[i] for i in columns], ["---"] * len(columns), *([row[i] for i in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Dialogues for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from data_modules.text.conversation import Episode

COLUMNS = ("prompt", "reply", "score", "parts", "expected")
STYLE = "td, th {border: 1px solid #ccc; padding: .4em; vertical-align: top; text-align: left; white-space: pre-wrap}"


def cells(episode: Episode, score: float, expected: str | None) -> list[str]:
    """One row of the table; a reply that was cut ends with …, and the environment's words stand in brackets."""
    said = []
    for turn in episode.turns:
        said.append(turn.text + ("" if turn.finished else " …"))
        if turn.outcome.text.strip():
            said.append(f"[{turn.outcome.text.strip()}]")
    parts = ", ".join(f"{name} {amount:.3g}" for name, amount in episode.parts.items())
    return [episode.prompt.case.prompt.strip(), "\n".join(said), f"{score:.3g}", parts, expected or ""]


def write_tables(rows: Sequence[Sequence[str]], folder: Path, name: str = "transcript") -> list[Path]:
    """The same table as Markdown and as HTML, which a browser shows."""
    markdown = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    markdown += ["| " + " | ".join(x.replace("|", "\\|").replace("\n", "<br>") for x in row) + " |" for row in rows]
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    html = (
        f'<!doctype html><meta charset="utf-8"><title>{name}</title><style>table {{border-collapse: collapse}} {STYLE}'
        f"</style>\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
    )
    paths = [folder / f"{name}.md", folder / f"{name}.html"]
    for path, text in zip(paths, ("\n".join(markdown) + "\n", html), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths

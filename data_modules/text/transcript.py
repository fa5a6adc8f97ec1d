"""Dialogues for people to read, and to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_modules.markdown import escaped
from data_modules.terminal import printable
from data_modules.text.conversation import Conversation
from data_modules.text.environment import StepTeacher
from data_modules.text.episode import Episode, Prompt
from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums

STYLE = """
body {font: 14px/1.4 system-ui, sans-serif; margin: 0}
table {border-collapse: collapse}
th, td {border-bottom: 1px solid #ddd; padding: .5em .8em; vertical-align: top; text-align: left; white-space: pre-line}
th {position: sticky; top: 0; background: #f4f4f4; white-space: nowrap}
tr:nth-child(even) td {background: #fafafa}
.number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
td.parts {color: #555; white-space: pre}
"""
NUMBERS = ("score", "true reward")


def cells(episode: Episode, score: float, expected: str | None, by_rule: bool) -> dict[str, str]:
    """One row of the table; a reply that was cut ends with …, and the environment's words stand in brackets.

    Args: by_rule: the score is the rule's; else what the rule says stands beside it. The parts are the rule's.
    """
    said = []
    for turn in episode.turns:
        said.append(turn.text + ("" if turn.finished else " …"))
        if turn.outcome.text.strip():
            said.append(f"[{turn.outcome.text.strip()}]")
    return {
        "prompt": episode.prompt.case.prompt.strip(),
        "reply": "\n".join(said),
        "score": f"{score:.3g}",
        **({} if by_rule else {"true reward": f"{episode.score:.3g}"}),
        "parts": "\n".join(f"{name} {amount:.3g}" for name, amount in episode.parts.items()),
        "expected": expected or "",
    }


def write_tables(rows: Sequence[Mapping[str, str]], folder: Path) -> list[Path]:
    """The same table as Markdown and as HTML, which a browser shows.

    Args: rows: the text of each cell by its column; at least one.
    """
    columns = list(rows[0])
    markdown = [columns, ["---:" if column in NUMBERS else "---" for column in columns]]
    markdown += [[escaped(x).replace("\n", "<br>") for x in row.values()] for row in rows]
    kinds = {column: "number" if column in NUMBERS else column for column in columns}
    head = "".join(f'<th class="{kinds[column]}">{column}</th>' for column in columns)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="{kinds[column]}">{escape(printable(x))}</td>' for column, x in row.items())
        + "</tr>"
        for row in rows
    )
    html = (
        f'<!doctype html><meta charset="utf-8"><title>transcript</title><style>{STYLE}</style>\n'
        f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
    )
    paths = [folder / "transcript.md", folder / "transcript.html"]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in markdown)
    for path, text in zip(paths, (lines, html), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def replies_by_prompt(batch: Batch, prompts: Sequence[Prompt], conversation: Conversation) -> list[dict[str, Any]]:
    """One line of a feedback file for each prompt, without the replies that are empty; `group` is the prompt's place.

    Args: batch: whole dialogues, (B, T).
    """
    assert batch.group is not None and batch.rewards is not None
    task, digest = conversation.task, conversation.tokenizer.digest
    lines: dict[int, dict[str, Any]] = {}
    scores = row_sums(batch.rewards, batch.valid).tolist()
    for row, (place, score) in enumerate(zip(batch.group.tolist(), scores, strict=True)):
        prompt = prompts[place]
        fresh = {"id": prompt.case.id, "prompt": conversation.posed(prompt.case.prompt), "responses": [], "score": []}
        meta = {"finished": [], "tokens": [], "tokenizer": digest, "empty": 0}
        line = lines.setdefault(place, fresh | {"source": "rule", "meta": meta})
        last = int(batch.valid[row].nonzero()[-1])
        ids = batch.actions[row, len(prompt.ids) - 1 : last + 1].tolist()
        text = conversation.text(ids)
        if not text.strip():
            line["meta"]["empty"] += 1
            continue
        line["responses"].append(text)
        line["score"].append(score)
        line["meta"]["finished"].append(ids[-1] in conversation.stops)
        line["meta"]["tokens"].append(ids)
        if isinstance(task, StepTeacher):
            line.setdefault("steps", []).append(task.steps(prompt.case, text) or None)
    for line in lines.values():
        if not any(line.get("steps", ())):
            line.pop("steps", None)
    return list(lines.values())

"""Transcripts of dialogues: tables for people to read, and lines of a feedback file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from data_modules.judgements.schema import plain
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


def cells(
    episode: Episode, score: float | None, expected: str | None, by_rule: bool, by_role: bool = False
) -> dict[str, str]:
    """One row of a transcript table. A reply that was cut off ends with …; the environment's text is in brackets.

    Args:
        score: the score to show; None if nothing scores replies, so the table has no score column.
        by_rule: whether the score is from the task's rule. If not, the rule's score has a separate column. The terms of
            the score are always the rule's.
        by_role: write the role before each message of a chat, with a blank line between messages. Only the
            environment's text after the last reply, which the model does not read, is then in brackets.
    """
    return {
        "prompt": episode.prompt.case.text.strip(),
        "reply": reply_text(episode, by_role, mark=" …"),
        **({} if score is None else {"score": f"{score:.3g}"}),
        **({} if by_rule or math.isnan(episode.score) else {"true reward": f"{episode.score:.3g}"}),
        **({} if math.isnan(episode.score) else {"parts": _parts(episode)}),
        "expected": expected or "",
    }


def reply_text(episode: Episode, by_role: bool = False, mark: str = "") -> str:
    """All replies with the environment's answers between them. `mark` is added to a reply that was cut off."""
    texts = []
    for place, turn in enumerate(episode.turns, 1):
        cut, answer = "" if turn.finished else mark, turn.outcome.text.strip()
        texts.append(("assistant: " if by_role else "") + turn.text + cut)
        if answer:
            texts.append(f"user: {answer}" if by_role and place < len(episode.turns) else f"[{answer}]")
    return ("\n\n" if by_role else "\n").join(texts)


def _parts(episode: Episode) -> str:
    return "\n".join(f"{name} {amount:.3g}" for name, amount in episode.parts.items())


def write_tables(rows: Sequence[Mapping[str, str]], folder: Path, name: str = "transcript") -> list[Path]:
    """Write a table as Markdown and as HTML.

    Args: rows: the text of each cell by column name, at least one row; name: the name of the files, without extension.
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
        f'<!doctype html><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>\n'
        f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
    )
    paths = [folder / f"{name}.md", folder / f"{name}.html"]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in markdown)
    for path, text in zip(paths, (lines, html), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def replies_by_prompt(batch: Batch, prompts: Sequence[Prompt], conversation: Conversation) -> list[dict[str, Any]]:
    """Make one line of a feedback file for each prompt, without empty replies. `group` is the index of the prompt.

    `meta.facts` are the facts of the case that can be written as JSON, because a judge of the file may need them.

    Args: batch: rows (B, T) that are whole dialogues. If the batch has no rewards, lines have no `score`.
    """
    assert batch.group is not None
    task, digest = conversation.task, conversation.tokenizer.digest
    posed = replace(conversation.format, suffix="").posed
    lines: dict[int, dict[str, Any]] = {}
    scored = batch.rewards is not None
    scores = row_sums(batch.rewards, batch.valid).tolist() if batch.rewards is not None else [None] * len(batch)
    for row, (place, score) in enumerate(zip(batch.group.tolist(), scores, strict=True)):
        prompt = prompts[place]
        fresh: dict[str, Any] = {"id": prompt.case.id, "prompt": plain(posed(prompt.case.prompt)), "responses": []}
        fresh |= {"score": [], "source": "rule"} if scored else {}
        facts = prompt.case.plain_facts
        meta: dict[str, Any] = {"facts": facts} if facts else {}
        meta |= {"finished": [], "tokens": [], "tokenizer": digest, "empty": 0}
        line = lines.setdefault(place, fresh | {"meta": meta})
        last = int(batch.valid[row].nonzero()[-1])
        ids = batch.actions[row, len(prompt.ids) - 1 : last + 1].tolist()
        text = conversation.text(ids)
        if not text.strip():
            line["meta"]["empty"] += 1
            continue
        line["responses"].append(text)
        if scored:
            line["score"].append(score)
        line["meta"]["finished"].append(ids[-1] in conversation.stops)
        line["meta"]["tokens"].append(ids)
        if isinstance(task, StepTeacher):
            line.setdefault("steps", []).append(task.steps(prompt.case, text) or None)
    for line in lines.values():
        if not any(line.get("steps", ())):
            line.pop("steps", None)
    return list(lines.values())

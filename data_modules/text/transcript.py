"""Dialogues for people to read, and to judge."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_modules.text.conversation import Episode, Prompt
from data_modules.text.environment import StepTeacher, TextEnvironment
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_sums

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


def replies_by_prompt(
    batch: Batch, prompts: Sequence[Prompt], tokenizer: Tokenizer, task: TextEnvironment
) -> list[dict[str, Any]]:
    """One line of a feedback file for each prompt that has a reply which is not empty; `group` is the prompt's place.

    Args: batch: whole dialogues, (B, T).
    """
    assert batch.group is not None and batch.rewards is not None
    lines: dict[int, dict[str, Any]] = {}
    scores = row_sums(batch.rewards, batch.valid).tolist()
    for row, (place, score) in enumerate(zip(batch.group.tolist(), scores, strict=True)):
        prompt = prompts[place]
        fresh = {"id": prompt.case.id, "prompt": prompt.case.prompt, "responses": [], "score": []}
        meta = {"finished": [], "tokens": [], "tokenizer": tokenizer.digest, "empty": 0}
        line = lines.setdefault(place, fresh | {"source": "rule", "meta": meta})
        last = int(batch.valid[row].nonzero()[-1])
        ids = batch.actions[row, len(prompt.ids) - 1 : last + 1].tolist()
        text = tokenizer.decode(ids)
        if not text.strip():
            line["meta"]["empty"] += 1
            continue
        line["responses"].append(text)
        line["score"].append(score)
        line["meta"]["finished"].append(ids[-1] == tokenizer.eos)
        line["meta"]["tokens"].append(ids)
        if isinstance(task, StepTeacher):
            line.setdefault("steps", []).append(task.steps(prompt.case, text) or None)
    for line in lines.values():
        if not any(line.get("steps", ())):
            line.pop("steps", None)
    return [line for line in lines.values() if line["responses"]]

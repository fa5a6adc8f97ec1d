"""A page that shows what training changed: replies before and after training to the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from data_modules.markdown import escaped
from data_modules.terminal import printable

STYLE = """
:root {color-scheme: light}
body {font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 84rem; padding: 1rem 1.5rem 3rem; color: #1b1b1b;
background: #fff}
h1 {font-size: 1.5rem; margin: .5rem 0 .3rem}
h2 {font-size: 1.15rem; margin: 2.2rem 0 .6rem}
p {margin: .3rem 0; color: #555}
table.figures {border-collapse: collapse; margin: 1rem 0}
.figures th, .figures td {padding: .3em 1em .3em 0; border-bottom: 1px solid #ddd; text-align: right;
font-variant-numeric: tabular-nums}
.figures th:first-child {text-align: left; font-weight: normal}
article {border: 1px solid #d6d6d6; border-radius: 6px; margin: 0 0 1rem; overflow: hidden}
article div {padding: .6rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere}
.prompt {background: #f4f4f4; border-bottom: 1px solid #d6d6d6}
.replies {display: grid; grid-template-columns: 1fr 1fr; padding: 0 !important}
.replies > div + div {border-left: 1px solid #d6d6d6}
.policy {background: #f3f8ff}
.expected {border-top: 1px solid #d6d6d6; background: #f6faf3}
b {display: block; font-size: .75rem; font-weight: 600; letter-spacing: .04em; color: #666; text-transform: uppercase}
b i {font-style: normal; text-transform: none; letter-spacing: 0; float: right}
@media (max-width: 44rem) {
body {padding: .5rem .7rem 2rem}
.replies {grid-template-columns: 1fr}
.replies > div + div {border-left: 0; border-top: 1px solid #d6d6d6}
.figures th, .figures td {padding-right: .7em}
}
"""
FIGURES = {
    "length": "mean length, tokens",
    "distinct_2": "distinct-2 (distinct bigrams / all bigrams)",
    "unique": "distinct replies / all replies",
}


@dataclass(frozen=True)
class Compared:
    """A prompt with the reply before training and the reply after training, as text for people."""

    prompt: str
    start: str
    policy: str
    scores: tuple[float, float] | None
    expected: str | None


@dataclass(frozen=True)
class Section:
    """The compared replies of one decoding mode, greedy or sampled."""

    title: str
    figures: Mapping[str, float]
    rows: Sequence[Compared]
    left_out: int = 0  # rows that are not on the page


def write_pages(sections: Sequence[Section], run: str, iteration: int, folder: Path) -> list[Path]:
    """Write `changed.md` and `changed.html`. Text from models and files is escaped.

    Args: run: the name of the run; iteration: the last iteration before the policy wrote its replies.
    """
    title = f"{run}: the start and the policy after iteration {iteration}"
    pages = {folder / "changed.md": _markdown(sections, title), folder / "changed.html": _html(sections, title)}
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return list(pages)


def summary(section: Section) -> str:
    """The share of replies that changed, and the win rate against the start, in one or two sentences."""
    figures = section.figures
    words = f"{100 * figures['changed']:.0f} % of the replies changed."
    if "win_rate" in figures:
        rate, low, high = (f"{100 * figures[name]:.0f} %" for name in ("win_rate", "win_rate_low", "win_rate_high"))
        words += f" The policy wins {rate} against the start (95 % interval {low} to {high}, ties half)."
    return words


def _left_out(section: Section) -> str:
    return f"{section.left_out} more are not shown; the greedy ones are in changed.jsonl." if section.left_out else ""


# ---- HTML


def _html(sections: Sequence[Section], title: str) -> str:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(printable(title))}</title>'
    head += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n'
    body = "\n".join(_html_section(section) for section in sections)
    return f"{head}<h1>{escape(printable(title))}</h1>\n{body}\n</html>\n"


def _html_section(section: Section) -> str:
    rows = "".join(
        f"<tr><th>{label}</th><td>{section.figures[f'start_{name}']:.3g}</td><td>{section.figures[name]:.3g}</td></tr>"
        for name, label in FIGURES.items()
    )
    figures = f'<table class="figures"><tr><th></th><th>start</th><th>policy</th></tr>{rows}</table>'
    articles = "\n".join(map(_article, section.rows))
    return f"<h2>{section.title}</h2>\n<p>{summary(section)}</p>\n{figures}\n{articles}\n<p>{_left_out(section)}</p>"


def _article(row: Compared) -> str:
    start, policy = (None, None) if row.scores is None else row.scores
    mark = " (the same)" if row.start == row.policy else ""
    expected = "" if row.expected is None else _block("expected", "expected", row.expected)
    replies = _block("start", "start", row.start, start) + _block("policy", f"policy{mark}", row.policy, policy)
    return f'<article>{_block("prompt", "prompt", row.prompt)}<div class="replies">{replies}</div>{expected}</article>'


def _block(kind: str, name: str, text: str, score: float | None = None) -> str:
    beside = "" if score is None else f"<i>score {score:.3g}</i>"
    return f'<div class="{kind}"><b>{name}{beside}</b>{escape(printable(text.strip()))}</div>'


# ---- Markdown


def _markdown(sections: Sequence[Section], title: str) -> str:
    lines = [f"# {escaped(title)}", *(line for section in sections for line in _markdown_section(section))]
    return "\n".join(lines) + "\n"


def _markdown_section(section: Section) -> list[str]:
    values = section.figures
    lines = ["", f"## {section.title}", "", summary(section), "", "| | start | policy |", "| --- | ---: | ---: |"]
    lines += [f"| {label} | {values[f'start_{name}']:.3g} | {values[name]:.3g} |" for name, label in FIGURES.items()]
    scored = any(row.scores is not None for row in section.rows)
    expected = any(row.expected is not None for row in section.rows)
    columns = ["prompt", "start", "policy", *(["start's score", "policy's score"] if scored else [])]
    columns += ["expected"] if expected else []
    lines += ["", _line(columns), _line(["---:" if "score" in column else "---" for column in columns])]
    for row in section.rows:
        scores = [f"{score:.3g}" for score in row.scores] if row.scores is not None else ["", ""]
        cells = [_cell(row.prompt), _cell(row.start), _cell(row.policy), *(scores if scored else [])]
        lines.append(_line([*cells, *([_cell(row.expected or "")] if expected else [])]))
    return [*lines, *(["", _left_out(section)] if section.left_out else [])]


def _cell(text: str) -> str:
    return escaped(text.strip()).replace("\n", "<br>")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

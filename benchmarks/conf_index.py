"""The index of all yamls, `conf/README.md`, from their headers and `results/conf_times.json`.

python benchmarks/conf_index.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.conf_headers import CONF, Header, headers  # noqa: E402

TIMES = Path(__file__).parent / "results" / "conf_times.json"
FOLDERS = {  # in the order of the index: what the task of a folder is
    ".": "The main job: an inverted pendulum is balanced, and an expert takes over now and then.",
    "pendulum": "Balance an inverted pendulum, `InvertedPendulum-v5`; the best return is 1,000.",
    "bodies": "Control a double pendulum or a one-legged robot, `InvertedDoublePendulum-v5` and `Hopper-v5`.",
    "tokens": "Repeat the first and then the last symbol of a prompt: the smallest task of language.",
    "reviews": "Continue a review that starts badly so that it ends well; a rule gives the true reward, from 0 to 1.",
    "answers": "Answer questions about food correctly and name a source; a rule gives scores, critiques and expected "
    "responses.",
    "sums": "Solve a sum step by step; a rule says which steps and which answers are right.",
    "mazes": "Walk to the goal of a maze in a text dialogue, FO Maze of LMRL-Gym; the best score is 100.",
    "chat": "Your own prompts, model and teacher; the pages of [docs](../docs/index.md) go through them.",
    "providers": "Teachers for `python -m data_modules.feedback`: judge models, rules and principles.",
    "overlays": "Changes on top of another yaml.",
}
INTRODUCTION = """\
# Experiments

A yaml is an experiment, and one command runs it. The comment at its top says what is special about it, which yamls to
run first, and how its figure was measured: seeds, machine and command. `python -m lightning_nlf describe --config …`
prints the loss and the phases of a yaml without training.

- *Reached*: median or mean with a 95 % interval, if the yaml has a figure.
- *Minutes*: processor time on one thread, which is about the time to wait on a machine with two idle cores. It is
  estimated from the first iterations ([conf_times.md](../benchmarks/results/conf_times.md)). A dash means that it
  depends on your model, on people or on a judge model, or is not yet measured.

A row with flags is a variant: a yaml with few changes. `moved.csv` lists old paths of yamls; the command line names
the new one. This page is written by
`python benchmarks/conf_index.py`.
"""


def folder_of(header: Header) -> str:
    return Path(header.name).parent.as_posix()


def anchor(folder: str) -> str:
    return "the-main-job" if folder == "." else folder


def title(folder: str) -> str:
    return "The main job" if folder == "." else folder


def paper(link: str) -> str:
    """A link with a short name: `[arXiv 2305.18290](…)`."""
    arxiv = re.fullmatch(r"https://arxiv\.org/abs/(.+)", link)
    name = f"arXiv {arxiv[1]}" if arxiv else "doi" if "doi.org" in link else "code" if "github.com" in link else "pdf"
    return f"[{name}]({link})"


def row(header: Header, minutes: float | None) -> str:
    """One line of a table: method, paper, command, reached, minutes."""
    time = "–" if minutes is None else f"{minutes:.1f}" if minutes < 9.95 else f"{minutes:.0f}"
    cells = [f"[{header.method}]({header.yaml}.yaml)", ", ".join(map(paper, header.papers))]
    cells += [f"`{header.command}`", header.reached[:1].upper() + header.reached[1:], time]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def index(yamls: list[Header], minutes: dict[str, float]) -> str:
    """The whole page.

    Raises:
        KeyError: a folder without a sentence in `FOLDERS`.
    """
    parts = {folder: [header for header in yamls if folder_of(header) == folder] for folder in FOLDERS}
    if missing := {folder_of(header) for header in yamls} - parts.keys():
        raise KeyError(f"FOLDERS has no sentence for {', '.join(sorted(missing))}")
    lines = [INTRODUCTION, "| folder | experiments | task |", "| --- | --- | --- |"]
    lines += [f"| [{title(f)}](#{anchor(f)}) | {len(parts[f])} | {sentence} |" for f, sentence in FOLDERS.items()]
    for folder, sentence in FOLDERS.items():
        lines += ["", f"## {title(folder)}", "", sentence, ""]
        lines += ["| method | paper | command | reached | minutes |", "| --- | --- | --- | --- | --- |"]
        lines += [row(header, minutes.get(header.name)) for header in parts[folder]]
    return "\n".join(lines) + "\n"


def main() -> None:
    times = json.loads(TIMES.read_text())["rows"]
    text = index(headers(), {name: cell["minutes"] for name, cell in times.items()})
    (CONF / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Code blocks of a Markdown page: read, written to the files that the page names, and run as a reader would.

The sentence before a block of Python, YAML, JSON lines or CSV names its file in backticks, and the block is written
there. Blocks of bash are run line by line, in order. A comment before one, `<!-- fast: --data.prompts 2 -->`, has
further words for its fits, and `<!-- not run: why -->` leaves it out.
"""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_nlf.cli.command_line import main

ROOT = Path(__file__).parents[1]
WRITTEN = ("python", "yaml", "jsonl", "csv")
FAST = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
QUIET = "--trainer.logger false --trainer.enable_progress_bar false"
ONLY_READ = ("pip ", "vllm ", "git ", "python -m lightning_nlf.tracking ui")  # first words of a command


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    language: str
    text: str
    before: str  # the paragraph before it, with comments

    @property
    def file(self) -> str | None:
        """The file that the sentence before names last."""
        names = re.findall(r"`([\w./-]+\.(?:py|yaml|jsonl|csv))`", self.before)
        return names[-1] if names and self.language in WRITTEN else None

    @property
    def fast(self) -> str:
        """Further words for its fits."""
        return " ".join(re.findall(r"<!-- fast: (.*?) -->", self.before))

    @property
    def is_run(self) -> bool:
        return self.language == "bash" and "<!-- not run:" not in self.before


def page_blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    pieces = re.split(r"^```(\w*)\n(.*?)^```$", page, flags=re.S | re.M)
    return [
        Block(language, text, _last_paragraph(before))
        for before, language, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False)
    ]


def _last_paragraph(text: str) -> str:
    """With the comments that follow it."""
    paragraphs = text.strip().split("\n\n")
    comments = [paragraph for paragraph in paragraphs if paragraph.startswith("<!--")]
    prose = [paragraph for paragraph in paragraphs if not paragraph.startswith("<!--")]
    return "\n".join([*prose[-1:], *comments])


def commands(block):
    """The lines of a block as a shell reads them, without what is said of them."""
    return [re.split(r"\s#", line)[0].strip() for line in block.replace("\\\n", " ").splitlines()]


def quoted_commands(page: str) -> Iterator[str]:
    """What stands in backticks as a command.

    A yaml after a command on the same line is that command with it. One alone in a cell of a table, perhaps as a
    link, is a fit.
    """
    for line in page.splitlines():
        before = ""
        for words in re.findall(r"`([^`]+)`", line):
            if words.startswith("python -m"):
                before = words.split(" conf/")[0] if "--config conf/" in words else ""
                yield words
            elif before and re.fullmatch(r"conf/\S+\.yaml", words):
                yield f"{before} {words}"
        cells = line.strip("| ").split(" | ") if line.startswith("|") else []
        yamls = (re.fullmatch(r"\[?`(conf/\S+\.yaml)`(?:\]\(\S+\))?", cell) for cell in cells)
        yield from (f"python -m lightning_nlf fit --config {match[1]}" for match in yamls if match)


def commands_of(page: str, module: str) -> list[str]:
    """All commands of a module that a page has, in a line, a table or a block."""
    lines = [line for block in page_blocks(page) if block.language == "bash" for line in commands(block.text)]
    every = (" ".join(command.split()) for command in [*quoted_commands(page), *lines])
    return sorted({command for command in every if command.startswith(f"python -m {module} ")})


def shell(command, folder):
    """The command as a user types it, with this environment's python; fails the test with what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = os.environ.get("PYTHONPATH")
    environ = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), python]))}
    process = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, f"{command}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    return process.stdout


def fast(command: str, further: str = "") -> str:
    """A command cut down to seconds: one iteration of a fit, and no store of runs."""
    prints_only = re.search(r" --(\S+\.)?help\b| --print_config", command)
    if prints_only or not command.startswith("python -m lightning_nlf "):
        return command
    stage = shlex.split(command)[3]
    return " ".join(
        [command, *([FAST] if stage == "fit" else []), *([] if stage in ("describe", "study") else [QUIET]), further]
    )


def check_command(command: str) -> None:
    """Build what a command line of `lightning_nlf` names; one that needs another run first is only read."""
    (source,) = set(re.findall(r"--config (conf/\S+)", command)) - {"conf/overlays/debug.yaml"}
    needs_run = re.search(r"^[^#]*(outputs|my)/|ckpt_path best", f"{command}\n{(ROOT / source).read_text()}", re.M)
    if not needs_run:
        main(shlex.split(command), run=False)
        return
    with pytest.raises(SystemExit) as ending:
        main([*shlex.split(command), "--print_config"])
    assert ending.value.code == 0


def check_names(page: str) -> None:
    """Every yaml and every name of our code that a page has is there."""
    assert [name for name in set(re.findall(r"conf/[\w/]+\.yaml", page)) if not (ROOT / name).is_file()] == []
    for name in set(re.findall(r"(?<![\w/])((?:lightning_nlf|data_modules)(?:\.\w+)+)(?![\w/])", page)):
        pkgutil.resolve_name(name)


def with_includes(page: Path) -> str:
    """The text of a page, with the files that it includes in their places, cut as the directive says."""

    def part(match: re.Match) -> str:
        text = (page.parent / match[1]).read_text()
        options = dict(re.findall(r'^:([\w-]+): "?(.*?)"?$', match[2], re.M))
        text = text.split(options["start-after"], 1)[1] if "start-after" in options else text
        return text.split(options["end-before"], 1)[0] if "end-before" in options else text

    return re.sub(r"^:::\{include\} (\S+)\n(.*?)^:::$", part, page.read_text(), flags=re.S | re.M)


def run_page(page: str, folder: Path) -> None:
    """All that a page says to do, in `folder`."""
    for block in page_blocks(page):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.is_run:
            for command in filter(None, commands(block.text)):
                if not command.startswith(ONLY_READ):
                    shell(fast(command, block.fast), folder)

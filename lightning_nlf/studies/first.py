"""Commands that a study runs before its runs: once per start, such as supervised training, or once for the study."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_nlf.studies.claims import take
from lightning_nlf.studies.runs import in_place
from lightning_nlf.studies.spec import Study

WAIT_SECONDS = 1.0


def run_first(study: Study, seed: int, attempt: Callable[[Sequence[str], Path], str]) -> str:
    """Run the commands of a seed's start that have not finished, or wait until another process has run them.

    A command without `{start}` and `{seed}` is run once for the whole study. Each finished command leaves a file
    `<digest>.done` in `first/<start>` or `first/study`, so that it is not repeated.

    Args:
        attempt: Runs a command with its output in a file, and returns why it failed; empty if it did not.

    Returns: Why a command failed; empty if none did.
    """
    for text in study.first:
        place = str(study.starts[seed]) if is_of_start(text) else "study"
        if failure := _run(study.folder / "first" / place, in_place(text, study, seed), attempt):
            return failure
    return ""


def is_of_start(command: str) -> bool:
    """Whether a command is run once per start, not once for the study."""
    return "{start}" in command or "{seed}" in command


def _run(folder: Path, command: str, attempt: Callable[[Sequence[str], Path], str]) -> str:
    marker = folder / f"{hashlib.sha256(command.encode()).hexdigest()[:8]}.done"
    while not marker.is_file():
        claim = take(folder)
        if claim is None:
            time.sleep(WAIT_SECONDS)
            continue
        with claim:
            if marker.is_file():  # it was finished before the folder was claimed
                break
            if failure := attempt(_words(command), folder / "output.txt"):
                return f"`{command}`: {failure}"
            marker.write_text(command + "\n", encoding="utf-8")
    return ""


def arguments(command: str) -> list[str]:
    """Arguments of Python for a command.

    Raises:
        ValueError: A quotation mark is missing.
    """
    words = shlex.split(command)
    return words[1:] if words[0] in ("python", "python3") else ["-m", "lightning_nlf", *words]


def subcommand(words: Sequence[str]) -> str:
    """`fit` for the arguments `-m lightning_nlf fit …`, and so on; empty for another module or a script."""
    return words[2] if tuple(words[:2]) == ("-m", "lightning_nlf") and len(words) > 2 else ""


def _words(command: str) -> list[str]:
    """Words of a command with this Python. A fit is continued if it had begun."""
    words = arguments(command)
    resumes = subcommand(words) == "fit" and not any(word.startswith("--ckpt_path") for word in words)
    return [sys.executable, *words, *(["--ckpt_path", "last"] if resumes else [])]

"""Commands that a study runs once per start before the runs of this start, such as supervised training."""

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

    Each finished command leaves a file `<digest>.done` in `first/<start>`, so that it is not repeated.

    Args:
        attempt: Runs a command with its output in a file, and returns why it failed; empty if it did not.

    Returns: Why a command failed; empty if none did.
    """
    folder = study.folder / "first" / str(study.starts[seed])
    commands = [in_place(command, study, seed) for command in study.first]
    while pending := [command for command in commands if not _marker(folder, command).is_file()]:
        claim = take(folder)
        if claim is None:
            time.sleep(WAIT_SECONDS)
            continue
        with claim:
            if failure := _run(folder, pending, attempt):
                return failure
    return ""


def _run(folder: Path, pending: Sequence[str], attempt: Callable[[Sequence[str], Path], str]) -> str:
    for command in pending:
        marker = _marker(folder, command)
        if marker.is_file():  # it was finished before the folder was claimed
            continue
        if failure := attempt(_words(command), folder / "output.txt"):
            return f"`{command}`: {failure}"
        marker.write_text(command + "\n", encoding="utf-8")
    return ""


def _marker(folder: Path, command: str) -> Path:
    return folder / f"{hashlib.sha256(command.encode()).hexdigest()[:8]}.done"


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

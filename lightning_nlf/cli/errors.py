"""Errors that end a command with a one-line message instead of a traceback."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable

# The optional extra that installs each package.
EXTRAS = {
    "transformers": "text",
    "tokenizers": "text",
    "peft": "text",
    "chess": "games",
    "textworld": "games",
    "stable_baselines3": "benchmark",
    "envpool": "benchmark",
    "optuna": "study",
}
_WANT_OF_MEMORY = ("cannot allocate memory", "can't allocate memory", "failed to map segment", "out of memory")
_OURS = ("lightning_nlf", "data_modules")


class ConfigurationError(Exception):
    """The configuration cannot be run. The message gives the key, its file and line, and what to do. Exit code 2."""

    exit_code = 2


class RunFailure(Exception):
    """A run failed after it had started. The message names the last good checkpoint. Exit code 1."""

    exit_code = 1


def nearest(name: str, names: Iterable[str]) -> str:
    """`Did you mean 'gamma'?`, or an empty string if no name is similar."""
    names = sorted(names)
    # difflib rates a shortened name as dissimilar, so prefixes are tried first. Two letters would match too many names.
    longer = [candidate for candidate in names if candidate.startswith(name)] if len(name.lstrip("-")) > 2 else []
    close = sorted(longer, key=len)[:1] or difflib.get_close_matches(name, names, 1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


def traceback_wanted() -> bool:
    """Whether the user set `LIGHTNING_NLF_TRACEBACK=1`, which shows tracebacks."""
    return os.environ.get("LIGHTNING_NLF_TRACEBACK", "") not in ("", "0")


def raised_by_us(error: BaseException) -> bool:
    """Whether one of our own checks raised an error. If so, the innermost frame of the error is in our packages."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.split(".")[0] in _OURS


OUT_OF_MEMORY = "out of memory: this process has reached the memory of the machine or a limit such as ulimit -v"


def memory_is_short(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that memory ran out, so that no key is to blame."""
    visited: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in visited:
        if isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in _WANT_OF_MEMORY):
            return True
        visited.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False

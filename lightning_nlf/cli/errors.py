"""How a command ends that cannot go on: a user's mistake is one short message, a bug keeps its traceback."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable

# What a package that may be missing comes with.
EXTRAS = {
    "transformers": "text",
    "tokenizers": "text",
    "peft": "text",
    "chess": "games",
    "textworld": "games",
    "stable_baselines3": "benchmark",
    "envpool": "benchmark",
}
_WANT_OF_MEMORY = ("cannot allocate memory", "can't allocate memory", "failed to map segment", "out of memory")
_OURS = ("lightning_nlf", "data_modules")


class ConfigurationError(Exception):
    """The configuration cannot be run as it is. The message says which key, where it stands, and what would do."""

    exit_code = 2


class RunFailure(Exception):
    """A run that began well could not go on. The message says what is left of it."""

    exit_code = 1


def nearest(name: str, names: Iterable[str]) -> str:
    """`Did you mean 'gamma'?`, or nothing where no name is near."""
    names = sorted(names)
    # What was cut short is far from its name as difflib counts; two letters begin too many.
    longer = [other for other in names if other.startswith(name)] if len(name.lstrip("-")) > 2 else []
    close = sorted(longer, key=len)[:1] or difflib.get_close_matches(name, names, 1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


def traceback_wanted() -> bool:
    """`LIGHTNING_NLF_TRACEBACK=1` shows where any message comes from."""
    return os.environ.get("LIGHTNING_NLF_TRACEBACK", "") not in ("", "0")


def raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame is in our packages: a check of ours, not something that broke further down."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.split(".")[0] in _OURS


OUT_OF_MEMORY = "out of memory: the machine, or a limit such as ulimit -v, has no more to give to this process"


def memory_is_short(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is for want of memory; then no key is wrong."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in _WANT_OF_MEMORY):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False

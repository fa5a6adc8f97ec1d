"""Damaged inputs, and the verdict on how the program answers them.

Each kind of input has a module here with `mutants(seed, count, folder)`. `python tests/mutants` runs them all.
"""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How the program answered a damaged input."""

    CLEAR = "clear"  # exit code 2 (or a documented error) and one line that names the fault
    WRONG_KEY = "wrong key"  # one line that blames something else
    TRACEBACK = "traceback"
    HANG = "hang"
    SILENT = "silent"  # accepted by mistake
    HARMLESS = "harmless"  # accepted rightly: the input is still valid, and its meaning is unchanged


@dataclass(frozen=True)
class Mutant:
    """One damaged input.

    Attributes:
        kind: yaml, feedback, folder, journal or checkpoint.
        mutation: The sort of damage. Verdicts are counted by it, and all sorts are equally frequent.
        description: The file and its damage, so that a person can reproduce it.
        names: Words such as a key's path. The message must contain at least one, unless this is empty.
        attempt: Gives the input to the program. Returns an exit code, or raises SystemExit or one of `refusals`.
        refusals: Errors that the program documents for a bad input of this kind.
        may_be_accepted: Whether exit code 0 is right, because the input may still be valid.
    """

    kind: str
    mutation: str
    description: str
    names: tuple[str, ...]
    attempt: Callable[[], int | None]
    refusals: tuple[type[BaseException], ...] = ()
    may_be_accepted: bool = False


@dataclass(frozen=True)
class Answer:
    """Verdict on one input, with the printed or raised message."""

    verdict: Verdict
    message: str


class OtherContent(Exception):
    """Raised by an attempt if the input was accepted, but with another content than was written."""


class TookTooLong(BaseException):
    """The time limit passed."""


def judge(mutant: Mutant, seconds: float = 20.0) -> Answer:
    """Give a mutant to the program, in this process, and return the verdict.

    Detects a hang with SIGALRM, so it must run in the main thread.
    """
    printed = io.StringIO()
    code: int | None
    try:
        with _time_limit(seconds), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            code = mutant.attempt()
    except TookTooLong:
        return Answer(Verdict.HANG, f"no answer in {seconds:.0f} s")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except OtherContent as error:
        return Answer(Verdict.SILENT, str(error))
    except mutant.refusals as error:
        return _answer(mutant, str(error))
    except BaseException:  # any other exception is a bug
        return Answer(Verdict.TRACEBACK, traceback.format_exc())
    message = printed.getvalue()
    if "Traceback (most recent call last)" in message:
        return Answer(Verdict.TRACEBACK, message)
    if not code:
        return Answer(Verdict.HARMLESS if mutant.may_be_accepted else Verdict.SILENT, message)
    return _answer(mutant, message)


def _answer(mutant: Mutant, message: str) -> Answer:
    names_it = not mutant.names or any(name in message for name in mutant.names)
    return Answer(Verdict.CLEAR if names_it and message.strip() else Verdict.WRONG_KEY, message)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    assert threading.current_thread() is threading.main_thread()

    def stop(number: int, frame: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Spoilt inputs and how the product answers them: a clear message, a wrong key, a traceback, a hang, silence.

Each kind of input has a module here with `mutants(seed, count, folder)`. `python tests/mutants --help` runs them all.
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
    CLEAR = "clear"  # exit code 2 (or the error that is documented) and one line that names what is wrong
    WRONG_KEY = "wrong key"  # one line, and it names something else
    TRACEBACK = "traceback"
    HANG = "hang"
    SILENT = "silent"  # accepted although it must not be
    HARMLESS = "harmless"  # accepted, and rightly: the mutation left a valid input, read with its meaning intact


@dataclass(frozen=True)
class Mutant:
    """One spoilt input.

    Attributes:
        kind: yaml, feedback, folder, journal or checkpoint.
        mutation: the sort of damage; figures are counted by it, and every sort has an equal share.
        what: the file and what was done to it, so that a person can do it again.
        names: words of which the message must hold at least one, such as the key's path; empty if any one line will do.
        attempt: hands the input to the product; returns an exit code, raises SystemExit, or raises one of `refusals`.
        refusals: errors that the product documents for a bad input of this kind.
        may_be_accepted: whether exit code 0 is right: the mutation may have left a valid input.
    """

    kind: str
    mutation: str
    what: str
    names: tuple[str, ...]
    attempt: Callable[[], int | None]
    refusals: tuple[type[BaseException], ...] = ()
    may_be_accepted: bool = False


@dataclass(frozen=True)
class Answer:
    verdict: Verdict
    message: str  # what was printed or raised


class OtherContent(Exception):
    """Raised by an attempt: the input was accepted, and read as something else than was written."""


class TookTooLong(BaseException):
    """The time limit passed."""


def judge(mutant: Mutant, seconds: float = 20.0) -> Answer:
    """What the product said to `mutant`, in this process.

    A hang is found by an alarm, so this runs in the main thread only.
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
        return _named(mutant, str(error))
    except BaseException:  # whatever it is: that is the fault looked for
        return Answer(Verdict.TRACEBACK, traceback.format_exc())
    message = printed.getvalue()
    if "Traceback (most recent call last)" in message:
        return Answer(Verdict.TRACEBACK, message)
    if not code:
        return Answer(Verdict.HARMLESS if mutant.may_be_accepted else Verdict.SILENT, message)
    return _named(mutant, message)


def _named(mutant: Mutant, message: str) -> Answer:
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

"""Converts a file of another program to a feedback file, and accounts for what it leaves out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.feedback.formats import FORMATS, Format, recognised
from data_modules.feedback.formats.account import Account, LeftOut, Options
from data_modules.feedback.formats.source import Record, records
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import first_ten, write
from data_modules.judgements.parsing import Faults, parse
from data_modules.judgements.schema import Judgement
from data_modules.terminal import on_one_line

COMMON: tuple[Scale, ...] = ((1, 5), (1, 10), (0, 10), (0, 100), (-1, 1))  # scales of which one is guessed


def converted(
    source: Iterable[Record], form: Format, account: Account, faults: list[str], path: str = ""
) -> list[Judgement]:
    """The judgements in records of a format, each with an id of its own.

    Args: faults: what is wrong with the other records is added to it: file, place and field.
    """
    judgements: list[Judgement] = []
    taken: set[str] = set()
    for number, (place, record) in enumerate(source, 1):
        value = Value(record)
        try:
            lines = _lines(value, form, account)
        except LeftOut as kind:
            account.note(f"{kind} left out")
            account.close(place)
        except ValueError as error:
            account.drop()
            faults.append(f"{path}: {place}: {error}")
        else:
            account.close(place, value)
            judgements += _named(lines, number, taken)
    return judgements


def _lines(record: Value, form: Format, account: Account) -> list[Judgement]:
    if isinstance(record.json, Faults):
        raise record.json
    if not isinstance(record.json, dict):
        raise record.wrong("an object")
    lines = form.judgements(record, account)
    for line in lines:
        parse(line.record())  # so that a fault has the place of its record
    return lines


def _named(lines: list[Judgement], number: int, taken: set[str]) -> list[Judgement]:
    """With ids: the record's, or else its number; of several lines :1, :2, …; a taken one gets the number behind it."""
    named = []
    for i, line in enumerate(lines, 1):
        name = (line.id or str(number)) + (f":{i}" if len(lines) > 1 else "")
        while name in taken:
            name += f":{number}"
        taken.add(name)
        named.append(replace(line, id=name))
    return named


def recognised_format(path: Path) -> str | None:
    """The name of the format of a file's first record; None where it is of none, or the file is no JSON."""
    try:
        first = next(iter(records(path, lambda record: recognised(record) is not None)), None)
    except ValueError:
        return None
    return recognised(first[1]) if first else None


def advice(path: Path) -> str | None:
    """What the format of a file is that is not ours, and the command that converts it; None where it is not known."""
    name = recognised_format(path)
    if name is None:
        return None
    files = shlex.join([str(path), "--from", name, "--out", f"{path.stem}.feedback.jsonl"])
    return f"{path}: this is {FORMATS[name].title}; convert it: python -m data_modules.feedback convert {files}"


def add_command(commands: Any) -> None:
    command = commands.add_parser("convert", help="bring feedback from the formats of other programs")
    command.add_argument("file", type=Path, metavar="FILE", help="JSON, JSON lines or CSV")
    command.add_argument("--from", dest="form", choices=tuple(FORMATS), required=True, help="the format of FILE")
    command.add_argument("--out", type=Path, required=True, help="the file to write, whole or not at all")
    command.add_argument(
        "--on-bad", "--on_bad", choices=("raise", "skip"), default="raise", help="what a bad record leads to"
    )
    command.add_argument("--passages", action="store_true", help="qa_feedback: put the passages before the question")
    both = "argilla, labelstudio: the"
    command.add_argument("--prompt", metavar="FIELD", help=f"{both} field with the prompt")
    command.add_argument("--responses", metavar="FIELD", nargs="+", default=(), help=f"{both} fields with responses")
    command.add_argument("--critique", metavar="QUESTION", help=f"{both} question that asks what is wrong")
    command.add_argument("--expected", metavar="QUESTION", help=f"{both} question that asks for a better response")
    command.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> None:
    path, out, form = options.file, options.out, FORMATS[options.form]
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"--out: {out} is the file to convert; name another one")
    account = Account(
        Options(options.passages, options.prompt, tuple(options.responses), options.critique, options.expected)
    )
    faults: list[str] = []
    judgements = converted(records(path, form.fits), form, account, faults, str(path))
    if faults and not judgements and recognised_format(path) not in (None, options.form):
        raise ValueError(advice(path))
    if faults and (options.on_bad == "raise" or not judgements):
        raise ValueError(_listed(faults))
    if faults:
        print(f"skipped: {_listed(faults)}", file=sys.stderr)
    if not judgements:
        raise ValueError("\n  ".join([f"{path}: there is no record that could be converted", *account.lines()]))
    write(out, judgements)
    print(on_one_line(f"{out}: {len(judgements)} judgements of {account.records} records"))
    print("\n".join([*account.lines(), _hints(judgements, account, out)]))


def _listed(faults: list[str]) -> str:
    """One fault as it is, on one line; of more how many, and the first ten."""
    return on_one_line(faults[0]) if len(faults) == 1 else first_ten(f"{len(faults)} records are wrong", faults)


def _hints(judgements: list[Judgement], account: Account, out: Path) -> str:
    """The scale to declare, where it is not 0 to 1, and the command that looks at the result."""
    scores = [score for judgement in judgements for score in judgement.score or () if score is not None]
    lines, scale = [], account.scale if scores else None
    if scale is not None:
        lines = [f"scores are on the scale {scale[0]:g} to {scale[1]:g}: say so wherever the file is read"]
    elif scores and not (min(scores) >= 0 and max(scores) <= 1):
        low, high = min(scores), max(scores)
        scale = next((common for common in COMMON if common[0] <= low and high <= common[1]), None)
        scale = scale or (low, high + (low == high))
        lines = [
            f"scores lie from {low:g} to {high:g}, perhaps on the scale {scale[0]:g} to {scale[1]:g}: "
            "say the one they were given on wherever the file is read"
        ]
    numbers = ["--scale", *(f"{bound:g}" for bound in scale)] if scale else []
    command = shlex.join(["python", "-m", "data_modules.feedback", "check", str(out), *numbers])
    return "\n".join([*lines, f"look at it: {on_one_line(command)}"])

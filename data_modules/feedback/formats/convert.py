"""Convert files from other programs to feedback files, with an account of everything that is left out."""

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

COMMON: tuple[Scale, ...] = ((1, 5), (1, 10), (0, 10), (0, 100), (-1, 1))  # tried in this order to guess the scale


def converted(
    source: Iterable[Record], form: Format, account: Account, faults: list[str], path: str = ""
) -> list[Judgement]:
    """Convert records of a format to judgements with unique ids.

    Args: faults: list to which the errors of invalid records are appended, with file, place and field.
    """
    judgements: list[Judgement] = []
    taken_ids: set[str] = set()
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
            judgements += _with_ids(lines, number, taken_ids)
    return judgements


def _lines(record: Value, form: Format, account: Account) -> list[Judgement]:
    if isinstance(record.json, Faults):
        raise record.json
    if not isinstance(record.json, dict):
        raise record.wrong("an object")
    lines = form.judgements(record, account)
    for line in lines:
        parse(line.record())  # validate here, so that an error names the record
    return lines


def _with_ids(lines: list[Judgement], number: int, taken_ids: set[str]) -> list[Judgement]:
    """Give lines unique ids: the record's id or else its number, with :1, :2, … if a record gives several lines.

    If an id is already taken, the record's number is appended.
    """
    lines_with_ids = []
    for i, line in enumerate(lines, 1):
        name = (line.id or str(number)) + (f":{i}" if len(lines) > 1 else "")
        while name in taken_ids:
            name += f":{number}"
        taken_ids.add(name)
        lines_with_ids.append(replace(line, id=name))
    return lines_with_ids


def recognised_format(path: Path) -> str | None:
    """The format of a file's first record; None if no format fits, or the file is not JSON."""
    try:
        first = next(iter(records(path, lambda record: recognised(record) is not None)), None)
    except ValueError:
        return None
    return recognised(first[1]) if first else None


def advice(path: Path) -> str | None:
    """Message with the format of a file and the command to convert the file; None if the format is unknown."""
    name = recognised_format(path)
    if name is None:
        return None
    files = shlex.join([str(path), "--from", name, "--out", f"{path.stem}.feedback.jsonl"])
    return f"{path}: this is {FORMATS[name].title}; convert it: python -m data_modules.feedback convert {files}"


def add_command(commands: Any) -> None:
    command = commands.add_parser("convert", help="import feedback from the formats of other programs")
    command.add_argument("file", type=Path, metavar="FILE", help="JSON, JSON lines or CSV")
    command.add_argument("--from", dest="form", choices=tuple(FORMATS), required=True, help="the format of FILE")
    command.add_argument("--out", type=Path, required=True, help="output file; written completely or not at all")
    command.add_argument(
        "--on-bad",
        "--on_bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a bad record (default: raise)",
    )
    command.add_argument("--passages", action="store_true", help="qa_feedback: put the passages before the question")
    tools = "argilla, labelstudio: the"
    command.add_argument("--prompt", metavar="FIELD", help=f"{tools} field with the prompt")
    command.add_argument("--responses", metavar="FIELD", nargs="+", default=(), help=f"{tools} fields with responses")
    command.add_argument("--critique", metavar="QUESTION", help=f"{tools} question that asks what is wrong")
    command.add_argument("--expected", metavar="QUESTION", help=f"{tools} question that asks for a better response")
    command.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> None:
    path, out, form = options.file, options.out, FORMATS[options.form]
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"--out: {out} is the input file; choose another one")
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
        raise ValueError("\n  ".join([f"{path}: no record could be converted", *account.lines()]))
    write(out, judgements)
    print(on_one_line(f"{out}: {len(judgements)} judgements from {account.records} records"))
    print("\n".join([*account.lines(), _hints(judgements, account, out)]))


def _listed(faults: list[str]) -> str:
    """The text of a single error, or the number of errors and the first ten."""
    return on_one_line(faults[0]) if len(faults) == 1 else first_ten(f"{len(faults)} records are wrong", faults)


def _hints(judgements: list[Judgement], account: Account, out: Path) -> str:
    """Next steps for the user: the scale to declare if it is not 0 to 1, and the command that checks the result."""
    scores = [score for judgement in judgements for score in judgement.score or () if score is not None]
    lines, scale = [], account.scale if scores else None
    if scale is not None:
        lines = [f"scores are on the scale {scale[0]:g} to {scale[1]:g}; set `scale` wherever the file is read"]
    elif scores and not (min(scores) >= 0 and max(scores) <= 1):
        low, high = min(scores), max(scores)
        scale = next((candidate for candidate in COMMON if candidate[0] <= low and high <= candidate[1]), None)
        scale = scale or (low, high + (low == high))
        lines = [
            f"scores range from {low:g} to {high:g}, so the scale may be {scale[0]:g} to {scale[1]:g}; set the right "
            "`scale` wherever the file is read"
        ]
    numbers = ["--scale", *(f"{bound:g}" for bound in scale)] if scale else []
    command = shlex.join(["python", "-m", "data_modules.feedback", "check", str(out), *numbers])
    return "\n".join([*lines, f"check it: {on_one_line(command)}"])

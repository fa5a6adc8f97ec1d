"""Command line for feedback files: `python -m data_modules.feedback COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.feedback.compare import add_command as add_compare
from data_modules.feedback.formats.convert import add_command as add_convert
from data_modules.feedback.formats.convert import advice
from data_modules.feedback.options import add_scale
from data_modules.feedback.people.commands import add_commands as add_people
from data_modules.feedback.providers.commands import add_commands as add_providers
from data_modules.feedback.summary import item_text, summary
from data_modules.feedback.versus import add_command as add_versus
from data_modules.judgements.fields import read_prompt
from data_modules.judgements.files import listed, scan, scan_lines, write
from data_modules.judgements.parsing import Faults
from data_modules.judgements.ranking import format_ranking, ranks_of_scores
from data_modules.judgements.schema import Judgement
from data_modules.terminal import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error with one message, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: by Ctrl-C", file=sys.stderr)
        return 130
    return code or 0


def _read(options: argparse.Namespace) -> list[Judgement]:
    """Read the judgements from the file. Skipped lines are listed on standard error."""
    judgements, bad = scan(options.file, tuple(options.scale))
    if bad and not judgements and (message := advice(options.file)):
        raise ValueError(message)
    if bad and options.on_bad == "raise":
        raise ValueError(listed(options.file, bad))
    if bad:
        print(f"skipped: {listed(options.file, bad)}", file=sys.stderr)
    if not judgements:
        raise ValueError(f"{options.file}: the file has no judgements")
    return judgements


def _check(options: argparse.Namespace) -> None:
    if count := _prompts_in(options.file):
        print(f"{options.file}: {count} prompts for data_modules.text.PromptFile, and no feedback yet")
        return
    print(summary(_read(options), tuple(options.scale)))


def _prompts_in(path: Path) -> int:
    """Number of prompts in a file whose lines have only prompts; 0 if a line has any other field."""
    prompts, other_lines = scan_lines(path, _only_prompt)
    return 0 if other_lines else len(prompts)


def _only_prompt(record: Any, where: str) -> Judgement:
    """Parse a line that has only a prompt.  Raises Faults: the line has no prompt, or has other fields."""
    if not isinstance(record, dict) or not set(record) <= {"prompt", "id", "facts", "follow_ups"}:
        raise Faults(["the line has more than a prompt"])
    try:
        return Judgement(read_prompt(record.get("prompt")), id=record.get("id"))
    except ValueError as error:
        raise Faults([str(error)]) from None


def _show(options: argparse.Namespace) -> None:
    judgements = _read(options)
    if options.id is not None:
        judgements = [judgement for judgement in judgements if judgement.id == options.id]
        if not judgements:
            raise ValueError(f"{options.file}: no judgement has the id {options.id!r}")
    print("\n\n".join(item_text(judgement) for judgement in judgements[: options.first]))


def _rank(options: argparse.Namespace) -> None:
    judgements = [ranked(judgement, options.ties) for judgement in _read(options)]
    rankings = [judgement.ranks for judgement in judgements if judgement.ranks is not None]
    if not rankings:
        raise ValueError(f"{options.file}: no line has two or more responses that all have a score; nothing to rank")
    write(options.out, judgements)
    tied = sum(len(set(ranks)) < len(ranks) for ranks in rankings)
    flat = sum(len(set(ranks)) == 1 for ranks in rankings)
    print(f"{options.out}: {len(rankings)} prompts ranked, {tied} with ties, {flat} of them with only ties")
    if len(rankings) < len(judgements):
        print(f"{len(judgements) - len(rankings)} unchanged: fewer than two responses, or a response without a score")


def ranked(judgement: Judgement, ties: float) -> Judgement:
    """Replace the ranking of a judgement by the ranking of its scores; unchanged if a response has no score.

    Args: ties: maximum difference between two scores that count as tied.
    """
    scores = [score for score in judgement.score or () if score is not None]
    if len(scores) < 2 or len(scores) < len(judgement.responses):
        return judgement
    return replace(judgement, ranking=format_ranking(ranks_of_scores(scores, ties)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_modules.feedback",
        description="Check, show, rank, convert and collect feedback files: JSON lines, one judged prompt per line.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    file_options = argparse.ArgumentParser(add_help=False)
    file_options.add_argument("file", type=Path, metavar="FILE", help="JSON lines")
    add_scale(file_options)
    file_options.add_argument(
        "--on-bad",
        "--on_bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a bad line (default: raise)",
    )

    command = commands.add_parser("check", parents=[file_options], help="report errors in a file, or summarise it")
    command.set_defaults(command=_check)

    command = commands.add_parser("show", parents=[file_options], help="print judgements in a readable form")
    command.add_argument("--first", type=_count, default=5, metavar="N", help="how many to print (default: 5)")
    command.add_argument("--id", help="print only the judgement with this id")
    command.set_defaults(command=_show)

    command = commands.add_parser("rank", parents=[file_options], help="rank the responses to each prompt")
    command.add_argument(
        "--out", type=Path, required=True, metavar="RANKED", help="output file; written completely or not at all"
    )
    command.add_argument("--by", choices=("score",), required=True, help="the field to rank by")
    command.add_argument(
        "--ties",
        type=float,
        default=0.0,
        metavar="TOLERANCE",
        help="scores that differ by at most this are a tie (default: 0)",
    )
    command.set_defaults(command=_rank)

    add_convert(commands)
    add_versus(commands)
    add_compare(commands)
    add_people(commands)
    add_providers(commands, file_options, _read)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, must be at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

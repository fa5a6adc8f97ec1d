"""Pairs of replies from two policies to the same prompts, to be compared by a judge or by people."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement


def versus(first: Sequence[Judgement], second: Sequence[Judgement]) -> list[Judgement]:
    """Judgements with two responses, A from `first` and B from `second`, matched by id or else by prompt.

    The judgements have no feedback, only whether each reply was cut off (`meta.finished`) and the facts of the case. If
    a prompt has several replies, the first reply is taken.

    Raises:
        ValueError: the two have no prompt in common.
    """
    second_by_name = {_name(judgement): judgement for judgement in second if judgement.responses}
    pairs: list[Judgement] = []
    for line in first:
        match = second_by_name.get(_name(line))
        if line.responses and match is not None:
            meta = {"finished": [line.finished(0), match.finished(0)]}
            meta |= {name: line.meta[name] for name in ("facts",) if name in line.meta}
            pairs.append(Judgement(line.prompt, (line.responses[0], match.responses[0]), meta=meta, id=line.id))
    if not pairs:
        raise ValueError("the two files have no prompt in common, neither by id nor by text")
    return pairs


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "versus", help="pair the replies of two policies, to be compared by a judge or by people"
    )
    command.add_argument("first", type=Path, metavar="A", help="replies of one policy, a file that `predict` wrote")
    command.add_argument("second", type=Path, metavar="B", help="replies of another policy to the same prompts")
    command.add_argument("--out", type=Path, required=True, help="output file; written completely or not at all")
    command.set_defaults(command=_pair)


def _pair(options: argparse.Namespace) -> None:
    any_scale = (-math.inf, math.inf)  # scores in the files are not used
    first, second = read(options.first, any_scale), read(options.second, any_scale)
    pairs = versus(first, second)
    write(options.out, pairs)
    print(f"{options.out}: {len(pairs)} pairs; A is {options.first}, B is {options.second}")
    if len(pairs) < max(len(first), len(second)):
        print(f"{max(len(first), len(second)) - len(pairs)} prompts left out: only in one file, or without a reply")


def _name(judgement: Judgement) -> Any:
    return judgement.id or judgement.prompt

"""Two policies side by side: a reply of each to every prompt that both answered, for somebody to prefer one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement


def versus(first: Sequence[Judgement], second: Sequence[Judgement]) -> list[Judgement]:
    """Lines with two responses, A of the first and B of the second, by id or else by prompt; nothing is said of them
    but whether they were cut off (`meta.finished`).

    Of several replies to a prompt it is the first of each.

    Raises:
        ValueError: no prompt in common.
    """
    others = {_name(judgement): judgement for judgement in second if judgement.responses}
    pairs: list[Judgement] = []
    for own in first:
        other = others.get(_name(own))
        if own.responses and other is not None:
            meta = {"finished": [own.finished(0), other.finished(0)]}
            meta |= {name: own.meta[name] for name in ("facts",) if name in own.meta}
            pairs.append(Judgement(own.prompt, (own.responses[0], other.responses[0]), meta=meta, id=own.id))
    if not pairs:
        raise ValueError("the two files have no prompt in common, by id or by text")
    return pairs


def add_command(commands: Any) -> None:
    command = commands.add_parser("versus", help="pair the replies of two policies, for a judge or people to compare")
    command.add_argument("first", type=Path, metavar="A", help="replies of one policy, as `predict` writes them")
    command.add_argument("second", type=Path, metavar="B", help="of another, to the same prompts")
    command.add_argument("--out", type=Path, required=True, help="the file to write, whole or not at all")
    command.set_defaults(command=_pair)


def _pair(options: argparse.Namespace) -> None:
    whatever = (-math.inf, math.inf)  # what else was said of them does not matter
    first, second = read(options.first, whatever), read(options.second, whatever)
    pairs = versus(first, second)
    write(options.out, pairs)
    print(f"{options.out}: {len(pairs)} pairs; A is {options.first}, B is {options.second}")
    if len(pairs) < max(len(first), len(second)):
        print(f"{max(len(first), len(second)) - len(pairs)} prompts are in one of the files only, or have no reply")


def _name(judgement: Judgement) -> Any:
    return judgement.id or judgement.prompt

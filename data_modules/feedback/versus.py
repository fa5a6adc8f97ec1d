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
            pairs.append(Judgement(own.prompt, (own.responses[0], other.responses[0]), meta=meta, id=own.id))
    if not pairs:
        raise ValueError("the two files have no prompt in common, by id or by text")
    return pairs


def win_rate(preferences: Sequence[float]) -> tuple[float, float, float]:
    """How often A wins against B, a tie half, and its 95 % interval: Wilson's, of so many comparisons.

    Args: preferences: P(A is better), each; above ½ A wins.
    """
    n = len(preferences)
    rate = sum((p > 0.5) + 0.5 * (p == 0.5) for p in preferences) / n
    z = 1.959964
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, middle - half, middle + half


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

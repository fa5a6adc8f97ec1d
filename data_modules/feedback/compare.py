"""Which of two policies is preferred, by everybody who compared their replies."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.judgements.files import read
from data_modules.judgements.schema import Judgement
from data_modules.judgements.win_rate import win_rate
from data_modules.terminal import printable


def wins(judgements: Sequence[Judgement]) -> list[str]:
    """Win rates in words, a line for each two policies and, where several judged, a line for each who did.

    Of lines with two responses that `meta.replies_of` names, the second against the first: the policy against its
    start. What somebody prefers is the line's preference, or its ranking, or the higher score. A pair counts once, by
    the mean of all who compared it: Wilson's interval is of independent comparisons. A tie is half a win.
    """
    preferred: dict[tuple[str, str], dict[str, dict[object, list[float]]]] = {}
    for judgement in judgements:
        p = second_preferred(judgement)
        names = policies(judgement)
        if p is not None and names is not None:
            pair = (judgement.prompt, judgement.responses)
            sources = preferred.setdefault(names, defaultdict(lambda: defaultdict(list)))
            sources[judgement.source or "nobody named"][pair].append(p)
    lines = []
    for (first, second), sources in preferred.items():
        together: dict[object, list[float]] = defaultdict(list)
        for pairs in sources.values():
            for compared, values in pairs.items():
                together[compared] += values
        lines.append(f"{second} against {first}: {_rate(together)}")
        if len(sources) > 1:
            lines += [f"  by {source}: {_rate(pairs)}" for source, pairs in sources.items()]
    return lines


def policies(judgement: Judgement) -> tuple[str, str] | None:
    """Who said the two responses, as far as the line names them."""
    names = judgement.meta.get("replies_of")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        return None
    return names[0], names[1]


def second_preferred(judgement: Judgement) -> float | None:
    """1 where the second of two responses is the better one, ½ for a tie, 0; None where nobody compared two."""
    if len(judgement.responses) != 2:
        return None
    if judgement.preference is not None:
        return 1 - judgement.preference
    if judgement.ranks is not None:
        return _above(judgement.ranks[0], judgement.ranks[1])
    scores = judgement.score or ()
    return _above(scores[1], scores[0]) if len(scores) == 2 and None not in scores else None  # type: ignore[arg-type]


def _above(x: float, y: float) -> float:
    return 0.5 * ((x > y) + (x >= y))


def _rate(pairs: dict[object, list[float]]) -> str:
    rate, low, high = win_rate([sum(values) / len(values) for values in pairs.values()])
    share = f"win rate {rate:.3g} (a tie counts half), 95 % interval {low:.3g} to {high:.3g}"
    return f"{share}, over {len(pairs)} pair{'s' * (len(pairs) > 1)}"


def add_command(commands: Any) -> None:
    command = commands.add_parser("compare", help="say how often a policy wins against its start, and how sure that is")
    command.add_argument("file", type=Path, metavar="FILE", help="changed.jsonl with what a judge or people said of it")
    command.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> None:
    lines = wins(read(options.file, (-math.inf, math.inf)))
    if not lines:
        raise ValueError(
            f"{options.file}: no line has two responses that meta.replies_of names, and a ranking, a preference or "
            "scores; have changed.jsonl compared first, by ask and pull, or by judge"
        )
    print(printable("\n".join(lines)))

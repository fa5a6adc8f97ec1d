"""Win rate of one policy against another, from comparisons of their replies by judges or people."""

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
    """Win rates as text: a line for each pair of policies, and a line for each source if there are several sources.

    A judgement counts if it has two responses and `meta.replies_of` names the policies that wrote them. The win rate is
    the rate at which the second policy (usually the trained policy) wins against the first (its start). The winner
    follows from the judgement's preference, else its ranking, else its scores. If several sources compared the same
    pair of replies, the pair counts once, with the mean of the preferences, because Wilson's interval assumes
    independent comparisons. A tie is half a win.
    """
    preferred: dict[tuple[str, str], dict[str, dict[object, list[float]]]] = {}
    for judgement in judgements:
        p = second_preferred(judgement)
        names = policies(judgement)
        if p is not None and names is not None:
            pair = (judgement.prompt, judgement.responses)
            sources = preferred.setdefault(names, defaultdict(lambda: defaultdict(list)))
            sources[judgement.source or "unnamed source"][pair].append(p)
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
    """Names of the policies that wrote the two responses; None if the judgement does not name the policies."""
    names = judgement.meta.get("replies_of")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        return None
    return names[0], names[1]


def second_preferred(judgement: Judgement) -> float | None:
    """Probability that the second response is better than the first, ½ for a tie; None without a comparison of two."""
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
    command = commands.add_parser("compare", help="win rate of a policy against its start, with its interval")
    command.add_argument("file", type=Path, metavar="FILE", help="changed.jsonl, compared by a judge or by people")
    command.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> None:
    lines = wins(read(options.file, (-math.inf, math.inf)))
    if not lines:
        raise ValueError(
            f"{options.file}: no line has two responses, their policies in meta.replies_of, and a ranking, a "
            "preference or scores; have changed.jsonl compared first, with ask and pull, or with judge"
        )
    print(printable("\n".join(lines)))

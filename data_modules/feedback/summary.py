"""Feedback in words: what there is of it, and how an item of it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from data_modules.judgements.fields import Scale, astral
from data_modules.judgements.ranking import letter
from data_modules.judgements.schema import FIELDS, Judgement
from data_modules.judgements.win_rate import win_rate
from data_modules.terminal import on_one_line, printable

BINS, WIDTH = 10, 40  # of the histogram
LISTED = 10  # doubtful lines


def summary(judgements: Sequence[Judgement], scale: Scale) -> str:
    """How many prompts have which field, who said it, how the scores lie, and what the rankings tell."""
    responses = sum(len(judgement.responses) for judgement in judgements)
    prompts = len({judgement.prompt for judgement in judgements})
    filled = {name: sum(getattr(j, name) not in (None, (), {}) for j in judgements) for name in FIELDS}
    lines = [f"{len(judgements)} judgements of {prompts} different prompts, {responses} responses"]
    lines += ["", "field        judgements", *(f"{name:<13}{count}" for name, count in filled.items() if count)]
    sources = Counter(judgement.source for judgement in judgements if judgement.source)
    if sources:
        lines += ["", "source       judgements"]
        lines += [f"{on_one_line(name):<13}{count}" for name, count in sources.most_common()]
    scores = [score for j in judgements for score in j.score or () if score is not None]
    if scores:
        mean = sum(scores) / len(scores)
        lines += ["", f"{len(scores)} scores on the scale {scale[0]:g} to {scale[1]:g}, mean {mean:.3g}"]
        lines += histogram(scores, scale)
    if filled["ranking"]:
        lines += ["", _pairs(judgements)]
    if filled["preference"]:
        lines += ["", _preferences(judgements)]
    if doubts := [*_doubtful_spans(judgements), *_repeated(judgements)]:
        rest = [f"… and {len(doubts) - LISTED} more lines"] if len(doubts) > LISTED else []
        lines += ["", "look at these:", *map(on_one_line, doubts[:LISTED]), *rest]
    return "\n".join(lines)


def _doubtful_spans(judgements: Sequence[Judgement]) -> list[str]:
    """Those that mean something else if they were counted in units of UTF-16."""
    return [
        f"{judgement.where}: spans: an emoji stands before {span.start} to {span.end}, and counts as one character; "
        f"as units of UTF-16 they would be elsewhere: they are {response[span.start : span.end][:40]!r}"
        for judgement in judgements
        for i, response in enumerate(judgement.responses)
        for span in judgement.of("spans", i) or ()
        if astral(response[: span.end])
    ]


def _repeated(judgements: Sequence[Judgement]) -> list[str]:
    """Lines without an id that are of the same replies by the same source as one before."""
    first: dict[object, str] = {}
    lines = []
    for judgement in judgements:
        if judgement.id is None and judgement.responses and judgement.source:
            what = (judgement.prompt, judgement.responses, judgement.source, judgement.episode, str(judgement.meta))
            if first.setdefault(what, judgement.where) != judgement.where:
                lines.append(
                    f"{judgement.where}: responses: {judgement.source} has judged them in {first[what]} as well"
                )
    return lines


def histogram(scores: Sequence[float], scale: Scale) -> list[str]:
    """A line a bin of the scale; the highest score is in the last."""
    low, high = scale
    places = Counter(min(int((score - low) / (high - low) * BINS), BINS - 1) for score in scores)
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    longest = max(places.values())
    return [
        f"{edges[i]:>7.4g} – {edges[i + 1]:<7.4g} {places[i]:>7} {'█' * -(-places[i] * WIDTH // longest)}".rstrip()
        for i in range(BINS)
    ]


def _pairs(judgements: Sequence[Judgement]) -> str:
    strict = tied = silent = 0
    for judgement in judgements:
        if judgement.ranking is None:
            continue
        ranks = judgement.ranks or ()
        pairs, ties = comb(len(ranks), 2), sum(comb(count, 2) for count in Counter(ranks).values())
        strict, tied, silent = strict + pairs - ties, tied + ties, silent + (ties == pairs)
    return f"rankings: {strict} strict pairs and {tied} ties; {silent} rankings put nothing above anything"


def _preferences(judgements: Sequence[Judgement]) -> str:
    found = [judgement.preference for judgement in judgements if judgement.preference is not None]
    sure = sum(max(p, 1 - p) for p in found) / len(found)
    rate, low, high = win_rate(found)
    wins = f"A wins {rate:.3g} of them against B, 95 % interval {low:.3g} to {high:.3g}"
    return f"preferences: {len(found)}, {sure:.3g} sure on average; {wins}"


def shown(judgement: Judgement) -> str:
    """An item for people to read."""
    lines = [on_one_line(f"── {judgement.where}" + (f" (id {judgement.id})" if judgement.id else ""))]
    if isinstance(judgement.prompt, str):
        lines.append(_entry("prompt", judgement.prompt))
    else:
        lines += [_entry(message.role, message.content) for message in judgement.prompt]
    for i, response in enumerate(judgement.responses):
        lines.append(_entry(letter(i), response))
        score, critique = judgement.of("score", i), judgement.of("critique", i)
        if score is not None:
            lines.append(_entry("score", f"{score:g}", indent=4))
        if critique is not None:
            lines.append(_entry("critique", critique, indent=4))
        for start, end, what in _pointed(judgement, i):
            lines.append(_entry(what, repr(response[start:end]), indent=4))
    lines += [
        _entry(name, str(value))
        for name in ("ranking", "preference", "expected", "source", "episode")
        if (value := getattr(judgement, name)) is not None
    ]
    return "\n".join(lines)


def _pointed(judgement: Judgement, i: int) -> list[tuple[int, int, str]]:
    """Start, end and name of each span and step of a response."""
    found = [(span.start, span.end, "at") for span in judgement.of("spans", i) or ()]
    start = 0
    for step in judgement.of("steps", i) or ():
        found.append((start, step.end, f"{step.label:g}"))
        start = step.end
    return found


def _entry(name: str, text: str, indent: int = 2) -> str:
    """A name, and the text beside it with its further lines below."""
    first = f"{'':{indent}}{name:<11}"
    return first + printable(text).replace("\n", "\n" + " " * max(len(first), 10))

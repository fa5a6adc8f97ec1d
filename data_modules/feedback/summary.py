"""Summary of a feedback file in words, and single judgements in a readable form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from data_modules.judgements.fields import Scale, astral
from data_modules.judgements.ranking import letter
from data_modules.judgements.schema import FIELDS, Judgement
from data_modules.judgements.win_rate import win_rate
from data_modules.terminal import on_one_line, printable

BINS, WIDTH = 10, 40  # number and width of the histogram's bars
LISTED = 10  # maximum number of suspicious lines in the summary


def summary(judgements: Sequence[Judgement], scale: Scale) -> str:
    """A summary as text: counts by field and source, histogram of scores, statistics of rankings, suspicious lines."""
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
        lines += ["", "check these lines:", *map(on_one_line, doubts[:LISTED]), *rest]
    return "\n".join(lines)


def _doubtful_spans(judgements: Sequence[Judgement]) -> list[str]:
    """Spans that would cover different text if their offsets were in UTF-16 code units."""
    return [
        f"{judgement.where}: spans: an emoji before {span.start} to {span.end} counts as one character here; if these "
        f"are UTF-16 offsets, they are wrong: they give {response[span.start : span.end][:40]!r}"
        for judgement in judgements
        for i, response in enumerate(judgement.responses)
        for span in judgement.of("spans", i) or ()
        if astral(response[: span.end])
    ]


def _repeated(judgements: Sequence[Judgement]) -> list[str]:
    """Lines without an id in which the same source judges the same replies as in an earlier line."""
    first: dict[object, str] = {}
    lines = []
    for judgement in judgements:
        if judgement.id is None and judgement.responses and judgement.source:
            key = (judgement.prompt, judgement.responses, judgement.source, judgement.episode, str(judgement.meta))
            if first.setdefault(key, judgement.where) != judgement.where:
                lines.append(f"{judgement.where}: responses: {judgement.source} judged the same ones in {first[key]}")
    return lines


def histogram(scores: Sequence[float], scale: Scale) -> list[str]:
    """A histogram of scores as text, one line per bin. The last bin includes the highest score."""
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
    return f"rankings: {strict} strict pairs and {tied} ties; {silent} rankings have only ties"


def _preferences(judgements: Sequence[Judgement]) -> str:
    preferences = [judgement.preference for judgement in judgements if judgement.preference is not None]
    sure = sum(max(p, 1 - p) for p in preferences) / len(preferences)
    rate, low, high = win_rate(preferences)
    wins = f"A beats B in {rate:.3g} of them, 95 % interval {low:.3g} to {high:.3g}"
    return f"preferences: {len(preferences)}, mean confidence {sure:.3g}; {wins}"


def item_text(judgement: Judgement) -> str:
    """One judgement as readable text."""
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
        for start, end, label in _pointed(judgement, i):
            lines.append(_entry(label, repr(response[start:end]), indent=4))
    lines += [
        _entry(name, str(value))
        for name in ("ranking", "preference", "expected", "source", "episode")
        if (value := getattr(judgement, name)) is not None
    ]
    return "\n".join(lines)


def _pointed(judgement: Judgement, i: int) -> list[tuple[int, int, str]]:
    """Start, end and label of each span and step of a response."""
    marks = [(span.start, span.end, "at") for span in judgement.of("spans", i) or ()]
    start = 0
    for step in judgement.of("steps", i) or ():
        marks.append((start, step.end, f"{step.label:g}"))
        start = step.end
    return marks


def _entry(name: str, text: str, indent: int = 2) -> str:
    """A name with a text beside it. Further lines of the text are indented below."""
    first = f"{'':{indent}}{name:<11}"
    return first + printable(text).replace("\n", "\n" + " " * max(len(first), 10))

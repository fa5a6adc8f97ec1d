"""Orders with ties, as people write them: "B > C = D > A" over the responses A, B, C, … of one prompt."""

from __future__ import annotations

from collections.abc import Sequence


def letter(index: int) -> str:
    """0 → A, 25 → Z, 26 → AA, as the columns of a spreadsheet."""
    name = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        name = chr(ord("A") + place) + name
    return name


def parse_ranking(text: str, responses: int) -> tuple[int, ...]:
    """The rank of each response, 0 for the best, equal for a tie: "B > C = D > A" of four is (2, 0, 1, 1).

    Raises:
        ValueError: a letter that no response has, one missing, one twice, or no such order at all.
    """
    quoted = repr(text if len(text) <= 80 else f"{text[:79]}…")
    index = {letter(i): i for i in range(responses)}
    ranks: dict[int, int] = {}
    for rank, block in enumerate(text.split(">")):
        for name in block.split("="):
            name = name.strip()
            if not name:
                raise ValueError(f"{quoted} has nothing on one side of a sign; write it like 'B > C = D > A'")
            if name not in index:
                known = "end at A" if responses == 1 else f"are A to {letter(responses - 1)}"
                raise ValueError(f"{quoted} names {name[:20]!r}, but the responses {known}")
            if index[name] in ranks:
                raise ValueError(f"{quoted} names {name} twice; name each response once")
            ranks[index[name]] = rank
    missing = [name for name, i in index.items() if i not in ranks]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{quoted} leaves out {', '.join(missing[:5])}{rest}; name each response once")
    return tuple(ranks[i] for i in range(responses))


def format_ranking(ranks: Sequence[int]) -> str:
    """(2, 0, 1, 1) → "B > C = D > A"; only the order of the ranks counts."""
    blocks: dict[int, list[str]] = {}
    for i, rank in enumerate(ranks):
        blocks.setdefault(rank, []).append(letter(i))
    return " > ".join(" = ".join(blocks[rank]) for rank in sorted(blocks))


def ranks_of_scores(scores: Sequence[float], ties: float = 0.0) -> tuple[int, ...]:
    """The rank of each response by its score, the highest best.

    A response ties with the best of those above it that it is within `ties` of; so a tie never spans more than `ties`.

    Raises:
        ValueError: ties is below 0.
    """
    if not ties >= 0:
        raise ValueError(f"ties: got {ties}, must be at least 0")
    ranks = [0] * len(scores)
    rank, best = 0, max(scores, default=0.0)
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        # .3 and .25 are a hair more than .05 apart as floats.
        if best - scores[i] > ties + 1e-12 * max(abs(best), 1):
            rank, best = rank + 1, scores[i]
        ranks[i] = rank
    return tuple(ranks)

"""Rankings with ties, as people write them: "B > C = D > A" for the responses A, B, C, … to one prompt."""

from __future__ import annotations

from collections.abc import Sequence


def letter(index: int) -> str:
    """0 → A, 25 → Z, 26 → AA, like the columns of a spreadsheet."""
    name = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        name = chr(ord("A") + place) + name
    return name


def parse_ranking(text: str, responses: int) -> tuple[int, ...]:
    """Parse a ranking into the rank of each response, 0 for the best: "B > C = D > A" gives (2, 0, 1, 1).

    Raises:
        ValueError: the text is not a ranking, or a letter is unknown, missing or used twice.
    """
    quoted = repr(text if len(text) <= 80 else f"{text[:79]}…")
    index = {letter(i): i for i in range(responses)}
    ranks: dict[int, int] = {}
    for rank, block in enumerate(text.split(">")):
        for name in block.split("="):
            name = name.strip()
            if not name:
                raise ValueError(f"{quoted} has nothing on one side of a sign; write a ranking like 'B > C = D > A'")
            if name not in index:
                letters = "end at A" if responses == 1 else f"are A to {letter(responses - 1)}"
                raise ValueError(f"{quoted} names {name[:20]!r}, but the responses {letters}")
            if index[name] in ranks:
                raise ValueError(f"{quoted} names {name} twice; name each response once")
            ranks[index[name]] = rank
    missing = [name for name, i in index.items() if i not in ranks]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{quoted} leaves out {', '.join(missing[:5])}{rest}; name each response once")
    return tuple(ranks[i] for i in range(responses))


def format_ranking(ranks: Sequence[int]) -> str:
    """Write ranks as text: (2, 0, 1, 1) gives "B > C = D > A". Only the order of the ranks matters."""
    blocks: dict[int, list[str]] = {}
    for i, rank in enumerate(ranks):
        blocks.setdefault(rank, []).append(letter(i))
    return " > ".join(" = ".join(blocks[rank]) for rank in sorted(blocks))


def ranks_of_scores(scores: Sequence[float], ties: float = 0.0) -> tuple[int, ...]:
    """The rank of each response by score, 0 for the highest score.

    A response joins a group of tied responses if its score differs by at most `ties` from the best score of the group.
    Scores in a group therefore never differ by more than `ties`.

    Raises:
        ValueError: ties is below 0.
    """
    if not ties >= 0:
        raise ValueError(f"ties: got {ties}, must be at least 0")
    ranks = [0] * len(scores)
    rank, best = 0, max(scores, default=0.0)
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        # As floats, .3 and .25 differ by a little more than .05.
        if best - scores[i] > ties + 1e-12 * max(abs(best), 1):
            rank, best = rank + 1, scores[i]
        ranks[i] = rank
    return tuple(ranks)

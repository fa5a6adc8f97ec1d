"""Rows of `own_model.py`: chats of about 300 tokens with random words, the same for both sides."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

WORDS = [
    "water", "river", "mountain", "green", "garden", "yellow", "small", "table", "open", "window", "morning",
    "light", "winter", "cold", "summer", "house", "teacher", "student", "paper", "letter", "number", "answer",
    "question", "reason", "music", "voice", "story", "people", "city", "street", "market", "bread", "fruit",
    "sugar", "salt", "engine", "wheel", "metal", "stone", "forest", "animal", "horse", "bird", "ocean", "island",
    "north", "south", "early", "late", "often", "never", "always", "quick", "slow", "heavy", "simple", "clear",
    "strong", "gentle", "quiet", "follow", "carry", "build", "learn", "speak", "write", "read", "listen", "remember",
]  # fmt: skip
PROMPT, REPLY = (35, 65), (170, 230)  # shortest and longest length in words, about the same in tokens


@dataclass(frozen=True)
class Pair:
    """A question with two answers, as text."""

    prompt: str
    chosen: str
    rejected: str


def pairs(count: int) -> list[Pair]:
    """The first `count` pairs of a fixed sequence."""
    random = Random(0)
    return [Pair(*(_text(random, *lengths) for lengths in (PROMPT, REPLY, REPLY))) for _ in range(count)]


def _text(random: Random, shortest: int, longest: int) -> str:
    """Sentence of random words."""
    return " ".join(random.choices(WORDS, k=random.randint(shortest, longest))).capitalize() + "."

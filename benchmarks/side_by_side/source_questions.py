"""Conversations about food in which somebody asks for a source: files of prompts and of feedback, made from a table.

The first is the one that the project began with: "What are the best food sources for fiber in an American diet?", and
then "That's helpful, but can you provide a source for that information?", to which the reply was "I don't have a
source, but …". People gave it 0, said "Please provide a source, like Mayo Clinic or USDA.", and wrote what they
expected.
"""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from data_modules.tasks.answers.table import GROUPS, NUTRIENTS, figure, high_in, singular

FIRST = (
    "What are the best food sources for {nutrient} in an American diet?",
    "Which {group} are high in {nutrient}?",
    "I want to eat more {nutrient}. Which {group} should I buy?",
    "Could you name some {group} with a lot of {nutrient}?",
)
SECOND = (
    "That's helpful, but can you provide a source for that information?",
    "Thanks. Where does that information come from?",
    "Good to know. Who says so?",
    "Can you back that up with a source?",
)
CRITIQUES = (
    "Please provide a source, like Mayo Clinic or USDA.",
    "There is no source. Name one that can be trusted, such as the USDA or the NIH.",
    "You say what is in the food, but not who measured it. Say where the figures come from.",
)
EXPECTED = (
    "As per the USDA Nutrient Database, {foods} are high in {nutrient}.",
    "According to the USDA Nutrient Database, {foods} have a lot of {nutrient}.",
    "The USDA Nutrient Database lists {foods} among the {group} that are high in {nutrient}.",
)
SOURCE = re.compile(r"\b(USDA|U\.S\. Department of Agriculture|Mayo Clinic|NIH|National Institutes of Health)\b")
HELD_OUT = 6  # pairs of a nutrient and a group: nothing about them is trained on


def names_a_source(text: str) -> bool:
    """Whether a reply names one of the sources that the critiques ask for."""
    return SOURCE.search(text) is not None


def names_food(name: str, text: str) -> bool:
    """Whether a reply to the conversation of this name names a food that is high in what it is about."""
    nutrient, group, _ = name.split("-")
    return any(singular(food) in text.lower() for food in high_in(nutrient, group))


def conversations() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is trained on and what is held out, each a line of a feedback file.

    A line has three messages, a reply without a source, its critique, and what was expected.
    """
    rng = Random("sources")
    pairs = [pair for pair in product(NUTRIENTS, GROUPS) if len(high_in(*pair)) > 1]
    held_out = set(rng.sample(pairs, HELD_OUT))
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for nutrient, group in pairs:
        foods = sorted(high_in(nutrient, group), key=lambda food: -figure(food, nutrient))[:3]
        words = {"nutrient": nutrient, "group": group, "foods": f"{', '.join(foods[:-1])} and {foods[-1]}"}
        for number, first in enumerate(FIRST):
            line = _conversation(f"{nutrient}-{group}-{number}", first, words, rng)
            sides[(nutrient, group) in held_out].append(line)
    return sides


def _conversation(name: str, first: str, words: dict[str, str], rng: Random) -> dict[str, Any]:
    known = f"{words['foods'].capitalize()} are known for having a lot of {words['nutrient']}."
    return {
        "id": name,
        "prompt": [
            {"role": "user", "content": first.format(**words)},
            {"role": "assistant", "content": known},
            {"role": "user", "content": rng.choice(SECOND)},
        ],
        "responses": [f"I don't have a source, but many {words['group']} are high in {words['nutrient']}."],
        "score": 0.0,
        "critique": rng.choice(CRITIQUES),
        "expected": rng.choice(EXPECTED).format(**words),
    }


def write_files(folder: Path) -> None:
    """`feedback.jsonl` and `prompts.jsonl` of what is trained on, `held_out.jsonl` with the others."""
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = conversations()
    files = {
        "feedback": training,
        "prompts": [{name: line[name] for name in ("id", "prompt")} for line in training],
        "held_out": [{name: line[name] for name in ("id", "prompt", "expected")} for line in held_out],
    }
    for name, records in files.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

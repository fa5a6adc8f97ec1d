"""Conversations about food in which a user asks for a source: prompt and feedback files, generated from a table.

The project began with the first one: "What are the best food sources for fiber in an American diet?", followed by
"That's helpful, but can you provide a source for that information?". The model replied "I don't have a source, but …".
People gave it 0, wrote "Please provide a source, like Mayo Clinic or USDA.", and wrote the response that they expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from data_modules.judgements.schema import Judgement
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
HELD_OUT = 6  # pairs of a nutrient and a group that no training conversation is about


def names_a_source(text: str) -> bool:
    """Whether a reply names one of the sources that the critiques ask for."""
    return SOURCE.search(text) is not None


def names_food(name: str, text: str) -> bool:
    """Whether a reply to the conversation of this name names a food that is high in its nutrient."""
    nutrient, group, _ = name.split("-")
    return any(singular(food) in text.lower() for food in high_in(nutrient, group))


def conversations() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out conversations, each as a line of a feedback file.

    A line has three messages, a reply without a source, its critique, and the expected response.
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
    first_answer = f"{words['foods'].capitalize()} are known for having a lot of {words['nutrient']}."
    return {
        "id": name,
        "prompt": [
            {"role": "user", "content": first.format(**words)},
            {"role": "assistant", "content": first_answer},
            {"role": "user", "content": rng.choice(SECOND)},
        ],
        "responses": [f"I don't have a source, but many {words['group']} are high in {words['nutrient']}."],
        "score": 0.0,
        "critique": rng.choice(CRITIQUES),
        "expected": rng.choice(EXPECTED).format(**words),
    }


def write_files(folder: Path) -> None:
    """Write the files of both sets.

    Training: `feedback.jsonl`, `ranked.jsonl` (with the expected response as a second, better reply) and
    `prompts.jsonl`. Held out: `held_out.jsonl`, `held_out_ranked.jsonl` and `held_out_prompts.jsonl`.
    """
    training, held_out = conversations()
    write(folder / "feedback.jsonl", training)
    write(folder / "ranked.jsonl", map(_ranked, training))
    write(folder / "held_out_ranked.jsonl", map(_ranked, held_out))
    write(folder / "prompts.jsonl", map(_prompt_line, training))
    write(folder / "held_out_prompts.jsonl", map(_prompt_line, held_out))
    write(folder / "held_out.jsonl", ({name: line[name] for name in ("id", "prompt", "expected")} for line in held_out))


def _prompt_line(line: dict[str, Any]) -> dict[str, Any]:
    """Line of a prompt file, with the expected response as a fact for a judge."""
    return {name: line[name] for name in ("id", "prompt", "expected")} | {"facts": {"reference": line["expected"]}}


def _ranked(line: dict[str, Any]) -> dict[str, Any]:
    """Line with the expected response as a second, better reply."""
    better = {"responses": [*line["responses"], line["expected"]], "ranking": "B > A"}
    return line | better | {"score": [line["score"], 1.0], "critique": [line["critique"], None]}


def reviewed(replies: Iterable[Judgement]) -> list[dict[str, Any]]:
    """Simulated reviews by people of a model's replies to the training conversations.

    A rule gives half of the score for a source, and half for a right food. A reply with both has no critique.
    """
    lines = {line["id"]: line for line in conversations()[0]}
    reviews = []
    for reply in replies:
        line, text = lines[str(reply.id)], reply.responses[0]
        score = (names_a_source(text) + names_food(line["id"], text)) / 2
        wrong = {} if score == 1 else {"critique": line["critique"]}
        reviews.append({**line, "responses": [text], "critique": None, "score": score} | wrong)
    return reviews


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

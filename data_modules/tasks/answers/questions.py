"""Questions of the food task: three kinds with six wordings each, and a split with held-out questions."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from data_modules.tasks.answers.table import FOODS, GROUPS, NUTRIENTS, agreeing, high_in, level
from data_modules.text.environment import Case, Split

TRAINED_WORDINGS = 4  # the first wordings; the rest are held out
HELD_OUT = 0.2  # share of the comparisons, because their answers follow from the levels
COMPARISONS = 40  # for each nutrient, the same as the number of foods

WORDINGS = {
    "level": (
        "{food_is} {food} high or low in {nutrient} ?",
        "how much {nutrient} is in {food} ?",
        "{food_does} {food} have a lot of {nutrient} ?",
        "tell me the amount of {nutrient} in {food} , high or low .",
        "is the amount of {nutrient} in {food} high or low ?",
        "tell me if {food} {food_is} high or low in {nutrient} .",
    ),
    "pair": (
        "which has more {nutrient} , {first} or {second} ?",
        "is there more {nutrient} in {first} or in {second} ?",
        "tell me if {first} or {second} {second_has} more {nutrient} .",
        "what is higher in {nutrient} , {first} or {second} ?",
        "is {first} or {second} higher in {nutrient} ?",
        "tell me which is higher in {nutrient} , {first} or {second} .",
    ),
    "list": (
        "name two {group} high in {nutrient}{besides} .",
        "which two {group} are high in {nutrient}{besides} ?",
        "tell me two {group} with a lot of {nutrient}{besides} .",
        "what are two {group} high in {nutrient}{besides} ?",
        "which two {group} have a lot of {nutrient}{besides} ?",
        "tell me two {group} high in {nutrient}{besides} .",
    ),
}


def questions(seed: int) -> dict[Split, list[Case]]:
    """The cases of all splits; the first cases of a split are a fair sample of it.

    A fifth of the comparisons, and the last two wordings of all facts, are never in `train`. `val` and `test` have the
    held-out comparisons in all wordings, and all other facts in the held-out wordings; no fact is in both. Levels and
    lists are not held out, because they cannot be derived from other facts.
    """
    rng = Random(f"{seed} questions")
    splits: dict[Split, list[Case]] = {"train": [], "val": [], "test": []}
    for facts in (_levels(), _pairs(rng), _lists()):
        rng.shuffle(facts)
        for place, fact in enumerate(facts):
            apart: Split = "val" if place % 2 else "test"
            held_out = fact["kind"] == "pair" and place < HELD_OUT * len(facts)
            for wording in range(len(WORDINGS[fact["kind"]])):
                split = apart if held_out or wording >= TRAINED_WORDINGS else "train"
                splits[split].append(case_of(fact | {"wording": wording, "held_out": held_out}))
    for cases in splits.values():
        rng.shuffle(cases)
    return splits


def _levels() -> list[dict[str, Any]]:
    return [
        {"kind": "level", "nutrient": nutrient, "foods": (food,), "right": level(food, nutrient)}
        for nutrient in NUTRIENTS
        for food in FOODS
    ]


def _pairs(rng: Random) -> list[dict[str, Any]]:
    """Comparisons of a high food with a low food, in either order; the answers follow from the levels."""
    facts = []
    for nutrient in NUTRIENTS:
        high = [food for food in FOODS if level(food, nutrient) == "high"]
        low = [food for food in FOODS if level(food, nutrient) == "low"]
        for higher, lower in rng.sample([(x, y) for x in high for y in low], COMPARISONS):
            foods = (higher, lower) if rng.random() < 0.5 else (lower, higher)
            facts.append({"kind": "pair", "nutrient": nutrient, "foods": foods, "right": higher})
    return facts


def _lists() -> list[dict[str, Any]]:
    """Groups with two or more right foods and a wrong one; if three or more are right, also questions without one."""
    facts = []
    for nutrient in NUTRIENTS:
        for group, members in GROUPS.items():
            right = high_in(nutrient, group)
            if not 2 <= len(right) < len(members):
                continue
            for besides in ("", *right) if len(right) > 2 else ("",):
                foods = tuple(food for food in right if food != besides)
                facts.append({"kind": "list", "nutrient": nutrient, "group": group, "besides": besides, "right": foods})
    return facts


def case_of(facts: Mapping[str, Any]) -> Case:
    kind, nutrient = facts["kind"], facts["nutrient"]
    template = WORDINGS[kind][facts["wording"]]
    if kind == "list":
        besides = facts["besides"]
        words = {"group": facts["group"], "besides": f" besides {besides}" if besides else ""}
        name = [facts["group"], *([besides] if besides else [])]
    else:
        roles = ("food",) if kind == "level" else ("first", "second")
        words = agreeing(**dict(zip(roles, facts["foods"], strict=True)))
        name = list(facts["foods"])
    prompt = template.format(nutrient=nutrient, **words)
    return Case("-".join([kind, nutrient, *name, str(facts["wording"])]), prompt, facts)

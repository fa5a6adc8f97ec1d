"""Answers in words: right answers with a source, and answers of a speaker with misconceptions and poor sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from data_modules.tasks.answers.questions import case_of
from data_modules.tasks.answers.table import FOODS, GROUPS, NUTRIENTS, agreeing, level
from data_modules.tasks.one_turn import cut_short
from data_modules.text.environment import Case

TRUSTED = ("the usda", "mayo clinic", "the nih")
UNTRUSTED = ("a blog", "a forum", "my uncle")

BODIES = {
    "level": (
        "{food} {food_is} {level} in {nutrient}",
        "the amount of {nutrient} in {food} is {level}",
        "{food} {food_has} a {level} amount of {nutrient}",
    ),
    "pair": (
        "{more} {more_has} more {nutrient} than {less}",
        "{more} {more_is} higher in {nutrient} than {less}",
        "there is more {nutrient} in {more} than in {less}",
    ),
    "list": (
        "{one} and {two} are high in {nutrient}",
        "two {group} high in {nutrient} are {one} and {two}",
        "{one} and {two} have a lot of {nutrient}",
    ),
}
SOURCED = ("according to {source} , {body} .", "{body} , says {source} .", "{source} says that {body} .")
UNSOURCED = ("{body} .", "i think {body} .", "i am sure that {body} .")


def answered(facts: dict[str, Any], claim: Any, source: str | None, rng: Random) -> str:
    """A whole sentence with a claim, which is a level, the food that has more, or two foods."""
    kind = facts["kind"]
    if kind == "level":
        words = {"level": claim} | agreeing(food=facts["foods"][0])
    elif kind == "pair":
        words = agreeing(more=claim, less=next(food for food in facts["foods"] if food != claim))
    else:
        words = {"group": facts["group"]} | agreeing(one=claim[0], two=claim[1])
    body = rng.choice(BODIES[kind]).format(nutrient=facts["nutrient"], **words)
    return rng.choice(SOURCED if source else UNSOURCED).format(body=body, source=source)


def right_answer(case: Case, rng: Random) -> str:
    """A right and finished answer with a trusted source."""
    facts = dict(case.facts)
    claim = rng.sample(facts["right"], 2) if facts["kind"] == "list" else facts["right"]
    return answered(facts, claim, rng.choice(TRUSTED), rng)


def imagined(wording: int, held_out: Collection[str], rng: Random) -> Case:
    """A question with random facts, which only the critique reveals; of any kind, about any foods, not in `held_out`.

    Half of the questions are comparisons, because comparisons are the hardest to revise.
    """
    while True:
        kind = rng.choice(("level", "pair", "pair", "list"))
        facts = {"kind": kind, "nutrient": rng.choice(NUTRIENTS), "wording": wording, "held_out": False}
        if kind == "list":
            facts |= {"group": rng.choice(list(GROUPS)), "besides": ""}
            right: Any = tuple(rng.sample(_members(facts), 2))
        else:
            facts["foods"] = tuple(rng.sample(FOODS, 1 if kind == "level" else 2))
            right = rng.choice(_either(facts))
        case = case_of(facts | {"right": right})
        if case.prompt not in held_out:
            return case


def contrary(facts: Mapping[str, Any], rng: Random) -> Any:
    """A wrong claim: the other level, the other food, or for a list one right and one wrong food."""
    if facts["kind"] == "list":
        wrong = [food for food in _members(facts) if food not in facts["right"]]
        return rng.sample([rng.choice(facts["right"]), rng.choice(wrong)], 2)
    return next(choice for choice in _either(facts) if choice != facts["right"])


def _either(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The two possible answers to a question of two choices."""
    return ("high", "low") if facts["kind"] == "level" else facts["foods"]


def _members(facts: Mapping[str, Any]) -> list[str]:
    """The foods that a list question allows: the foods of its group, except the food after "besides"."""
    return [food for food in GROUPS[facts["group"]] if food != facts["besides"]]


@dataclass(frozen=True)
class Speaker:
    """A speaker with misconceptions about some (food, nutrient) pairs. All answers follow from the speaker's beliefs.

    Args:
        misconceived: the pairs with a misconception.
        right: probability that an answer is right about such a pair after all.
        trusted, untrusted: share of answers with a trusted source, and with an untrusted source; the rest have no
            source.
        cut: share of answers that are cut short.
    """

    misconceived: frozenset[tuple[str, str]]
    right: float
    trusted: float
    untrusted: float
    cut: float

    def answer(self, case: Case, rng: Random) -> str:
        return self.put(case, self.opinion(case, rng), rng)

    def put(self, case: Case, claim: Any, rng: Random) -> str:
        """A sentence with a claim, which is a level, the food that has more, or two foods."""
        chance = rng.random()
        source = None
        if chance < self.trusted + self.untrusted:
            source = rng.choice(TRUSTED if chance < self.trusted else UNTRUSTED)
        text = answered(dict(case.facts), claim, source, rng)
        return cut_short(text, rng) if rng.random() < self.cut else text

    def opinion(self, case: Case, rng: Random) -> Any:
        facts = dict(case.facts)
        nutrient = facts["nutrient"]
        if facts["kind"] == "level":
            return self._believed(facts["foods"][0], nutrient, rng)
        if facts["kind"] == "pair":
            believed = {food: self._believed(food, nutrient, rng) for food in facts["foods"]}
            high = [food for food, belief in believed.items() if belief == "high"]
            return high[0] if len(high) == 1 else rng.choice(facts["foods"])
        members = _members(facts)
        rng.shuffle(members)
        members.sort(key=lambda food: self._believed(food, nutrient, rng) != "high")  # stable, so ties stay random
        return members[:2]

    def _believed(self, food: str, nutrient: str, rng: Random) -> str:
        truth = level(food, nutrient)
        if (food, nutrient) not in self.misconceived or rng.random() < self.right:
            return truth
        return {"high": "low", "low": "high"}[truth]

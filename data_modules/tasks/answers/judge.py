"""Judge of the food task: scores and errors of a reply, both from the same reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_modules.tasks.answers.reading import Reading
from data_modules.tasks.answers.table import GROUPS, NUTRIENTS, agreeing
from data_modules.tasks.one_turn import Defect, ends_as_sentence
from data_modules.text.environment import Case

PARAPHRASES = {  # kind of error → wordings, of which a critique has one
    "answer": (
        "that is no answer to the question .",
        "answer the question , please .",
        "the question is not answered .",
        "please say what you know of the {nutrient} .",
    ),
    "food": (
        "the question is not about {wrong} .",
        "nobody asked about {wrong} .",
        "{wrong} {wrong_is} the wrong food .",
        "please do not name {wrong} .",
    ),
    "nutrient": (
        "the question is not about {wrong} .",
        "nobody asked about {wrong} .",
        "{wrong} is the wrong nutrient .",
        "the question is about {nutrient} .",
    ),
    "contradiction": (
        "the answer contradicts itself .",
        "say one or the other , not both .",
        "both cannot be right .",
        "that is a contradiction .",
    ),
    "level": (
        "that is wrong , {food} {food_is} {right} in {nutrient} .",
        "{food} {food_is} {right} in {nutrient} , not {wrong} .",
        "the amount of {nutrient} in {food} is {right} , not {wrong} .",
        "no , the amount of {nutrient} in {food} is {right} .",
    ),
    "pair": (
        "that is wrong , {right} {right_has} more {nutrient} .",
        "no , {right} {right_has} more {nutrient} than {wrong} .",
        "{wrong} {wrong_does} not have more {nutrient} than {right} .",
        "{right} {right_is} higher in {nutrient} , not {wrong} .",
    ),
    "low": (
        "{wrong} {wrong_is} not high in {nutrient} , {right} {right_is} .",
        "that is wrong , {wrong} {wrong_is} low in {nutrient} , {right} {right_is} high .",
        "no , {right} {right_has} a lot of {nutrient} , {wrong} {wrong_does} not .",
        "the amount of {nutrient} is high in {right} , not in {wrong} .",
    ),
    "two": ("please name two {group} .", "name one more .", "one food is missing .", "two {group} are asked for ."),
    "source": (
        "please name a source , like mayo clinic or the usda .",
        "the source is missing .",
        "who says that ?",
        "add a source that can be trusted .",
    ),
    "untrusted": (
        "{source} is not a trusted source .",
        "do not trust {source} , name a better source .",
        "please name a source that can be trusted , not {source} .",
        "{source} cannot be trusted .",
    ),
    "unfinished": (
        "please finish the answer .",
        "the answer is cut short .",
        "the answer is not finished .",
        "the end of the answer is missing .",
    ),
}


@dataclass(frozen=True)
class Verdict:
    """The scores of a reply. `facts` is the share of right facts; `defects` is empty if nothing is wrong."""

    facts: float
    source: bool  # a claim with a trusted source and without an untrusted source
    finished: bool
    defects: tuple[Defect, ...]


def verdict(case: Case, reply: str, finished: bool) -> Verdict:
    """Judge a reply. Contradictory claims, and claims about other foods or nutrients, score 0."""
    reading = Reading(reply)
    facts, defect = (_list if case.facts["kind"] == "list" else _either)(reading, case.facts)
    defects = [defect] if defect else []
    untrusted, trusted = reading.untrusted(), reading.trusted()
    if untrusted:
        name, span = next(iter(untrusted.items()))
        defects.append(Defect("untrusted", {"source": name}, span))
    elif not trusted:
        defects.append(Defect("source"))
    ended = finished and ends_as_sentence(reply)
    if not ended:
        defects.append(Defect("unfinished", span=(len(reply), len(reply))))
    claims = not (defect and defect.kind == "answer")  # a source without a claim does not count
    return Verdict(facts, trusted and not untrusted and claims, ended, tuple(defects))


def _stray(reading: Reading, facts: Mapping[str, Any], foods: tuple[str, ...]) -> Defect | None:
    """A nutrient or food that the question is not about, or a missing nutrient."""
    nutrient = facts["nutrient"]
    for wrong, span in reading.nutrients().items():
        if wrong != nutrient:
            return Defect("nutrient", {"nutrient": nutrient, "wrong": wrong}, span)
    for wrong, span in reading.foods().items():
        if wrong not in foods:
            return _about("food", facts, span, wrong=wrong)
    return None if reading.nutrients() else _about("answer", facts)


def _about(kind: str, facts: Mapping[str, Any], span: tuple[int, int] | None = None, **foods: str) -> Defect:
    """Make a defect, with the foods for its paraphrases and the verbs that agree with these foods."""
    return Defect(kind, {"nutrient": facts["nutrient"], **agreeing(**foods)}, span)


def _either(reading: Reading, facts: Mapping[str, Any]) -> tuple[float, Defect | None]:
    """Judge a question with two choices: the level of a food, or which of two foods has more."""
    kind, foods, right = facts["kind"], facts["foods"], facts["right"]
    stray = _stray(reading, facts, foods)
    if stray:
        return 0.0, stray
    levels = reading.levels() if reading.foods() else {}
    claims = reading.winners(*foods) if kind == "pair" else levels
    if not claims:
        return 0.0, _about("answer", facts)
    if len(claims) > 1:
        return 0.0, Defect("contradiction", span=max(claims.values()))
    ((claim, span),) = claims.items()
    if claim == right:
        return 1.0, None
    return 0.0, _about(kind, facts, span, food=foods[0], right=right, wrong=claim)


def _list(reading: Reading, facts: Mapping[str, Any]) -> tuple[float, Defect | None]:
    """Judge a list: the share of its foods, counted as at least two, that are right. Naming all foods does not help."""
    foods = reading.foods()
    stray = _stray(reading, facts, tuple(foods))
    if stray:
        return 0.0, stray
    levels = reading.levels()
    if "low" in levels:
        kind = "contradiction" if "high" in levels else "answer"
        return 0.0, Defect(kind, {"nutrient": facts["nutrient"]}, levels["low"])
    if not foods or not levels:
        return 0.0, _about("answer", facts)
    share = sum(food in facts["right"] for food in foods) / max(len(foods), 2)
    for food, span in foods.items():
        if food not in facts["right"]:
            in_group = food in GROUPS[facts["group"]] and food != facts["besides"]
            missed = next((right for right in facts["right"] if right not in foods), facts["right"][0])
            return share, _about("low" if in_group else "food", facts, span, wrong=food, right=missed)
    return share, Defect("two", {"group": facts["group"]}) if len(foods) < 2 else None


def example_critiques() -> list[str]:
    """Every paraphrase once, with names filled in, because a tokenizer needs all these words."""
    words = {"nutrient": NUTRIENTS[0], "group": "fruits", "source": "a blog"}
    words |= agreeing(food="figs", right="figs", wrong="figs")
    return [text.format(**words) for texts in PARAPHRASES.values() for text in texts]

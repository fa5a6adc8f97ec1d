"""Grammar of reviews: negative openings, and continuations of every tone."""

from __future__ import annotations

from random import Random

from data_modules.tasks.reviews.things import THINGS, suitable, was

OPENINGS = (
    "i loved the {other} but really hated the {aspect} of the {item}",
    "the {aspect} of the {item} {was} {bad}",
    "we {tried} this {item} last week and the {aspect} {was} {bad}",
    "i was unhappy with the {bad} {aspect} of this {item}",
    "this {item} was a letdown , the {aspect} {was} {bad}",
    "my {sister} did not like the {item} because the {aspect} {was} {bad}",
    "honestly , the {aspect} of this {item} {was} {bad} and {worse}",
    "honestly , i was unhappy with this {item} because the {aspect} {was} {bad}",
    "the {aspect} {was} really {bad} and i hated this {item}",
    "last week my {sister} {tried} the {item} and hated the {aspect}",
)
TRAINED_OPENINGS = 7  # the first openings; the rest are held out
TONES = {"good": 0.1, "neutral": 0.5, "mixed": 0.25, "bad": 0.15}  # tone → share of the demonstrations
FAMILY = ("sister", "brother", "mother", "father")  # not "friend": the lexicon counts it as positive

TURNING = (", but", ". still ,", ". however ,", ". even so ,", ", yet")
GOING_ON = (", and", ". also ,", ". in the end ,", ", while", ". in fact ,")

CLAUSES = {  # about an aspect
    "good": (
        "the {aspect} {was} {adjective}",
        "the {aspect} {was} {degree} {adjective}",
        "i {enjoyed} the {aspect}",
        "my {sister} {enjoyed} the {aspect}",
    ),
    "neutral": (
        "the {aspect} {was} {adjective}",
        "the {aspect} {was} {degree} {adjective}",
        "we talked about the {aspect}",
        "my {sister} asked about the {aspect}",
    ),
    "bad": (
        "the {aspect} {was} {adjective}",
        "the {aspect} {was} {degree} {adjective}",
        "i {hated} the {aspect}",
        "my {sister} {hated} the {aspect}",
    ),
}
DEGREES = {"good": ("really",), "neutral": ("rather", "quite"), "bad": ("really",)}
CLOSINGS = {  # about the thing
    "good": (
        "i would happily {again}",
        "i recommend it to everyone",
        "it was worth the {price}",
        "it made me {happy}",
        "we had a {great} time",
    ),
    "neutral": ("i may {again}", "it was as we expected", "it took the whole day", "that is all i remember"),
    "bad": ("i would never {again} , it was awful", "it was a waste of {price}", "i regret it", "it made us angry"),
}
WORDS = {
    "sister": FAMILY,
    "enjoyed": ("loved", "enjoyed", "liked", "adored"),
    "hated": ("hated", "disliked"),
    "price": ("time", "money"),
    "happy": ("happy", "smile", "laugh"),
    "great": ("great", "wonderful", "good", "lovely"),
}


def opening(item: str, aspect: str, number: int, rng: Random) -> str:
    """The start of a review, in the opening with the given number."""
    subject = THINGS[item]
    bad, worse = rng.sample(suitable("bad", subject.aspects[aspect]), 2)
    return OPENINGS[number].format(
        item=item, aspect=aspect, was=was(aspect), bad=bad, worse=worse, other=rng.choice(subject.rivals),
        tried=subject.tried, sister=rng.choice(FAMILY),
    )  # fmt: skip


def continuation(item: str, aspect: str, tone: str, rng: Random) -> str:
    """A continuation about other aspects of the thing. tone: `good`, `neutral`, `bad`, or `mixed` for good and bad."""
    first, second = rng.sample([name for name in THINGS[item].aspects if name != aspect], 2)
    if tone == "mixed":
        good, bad = _clause(item, first, "good", rng), _clause(item, second, "bad", rng)
        if rng.random() < 0.5:
            return f"{rng.choice(TURNING)} {good} , though {bad} ."
        return f"{rng.choice(GOING_ON)} {bad} , but {good} ."
    start = rng.choice(TURNING if tone == "good" else GOING_ON)
    clause = _clause(item, first, tone, rng)
    chance = rng.random()
    if chance < 0.3:
        return f"{start} {clause} ."
    if chance < 0.65:
        return f"{start} {clause} and {_clause(item, second, tone, rng)} ."
    return f"{start} {clause} and {_closing(item, tone, rng)} ."


def _clause(item: str, aspect: str, tone: str, rng: Random) -> str:
    template = rng.choice(CLAUSES[tone])
    adjective = rng.choice(suitable(tone, THINGS[item].aspects[aspect]))
    words = {name: rng.choice(choices) for name, choices in WORDS.items()}
    return template.format(
        aspect=aspect, was=was(aspect), adjective=adjective, degree=rng.choice(DEGREES[tone]), **words
    )


def _closing(item: str, tone: str, rng: Random) -> str:
    words = {name: rng.choice(choices) for name, choices in WORDS.items()}
    return rng.choice(CLOSINGS[tone]).format(again=THINGS[item].again, **words)

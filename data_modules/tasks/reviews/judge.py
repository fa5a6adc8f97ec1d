"""What a continuation is worth and what is wrong with it, both from one reading of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from statistics import quantiles

from data_modules.tasks.one_turn import SHORTEST_SENTENCE, Defect, ends_as_sentence
from data_modules.tasks.reviews.fluency import NGrams, novelty
from data_modules.tasks.reviews.grammar import OPENINGS, TONES, continuation, opening
from data_modules.tasks.reviews.lexicon import compound, words_of
from data_modules.tasks.reviews.things import COMBINATIONS, NAMES, on_topic
from data_modules.text.environment import Case

ENOUGH = 0.8  # compound score of a review that ends well; it pays no more to gush
NATS = 3.0  # a word: how far below the grammar's own sentences fluency is nothing
READINGS = 3  # of every opening and tone, for the language model

PARAPHRASES = {  # of each defect; the critic picks one
    "empty": ("the review does not go on .", "say something about the {item} .", "there is no answer ."),
    "bad": (
        "the review still ends badly .",
        "say what was good about the {item} .",
        "that is as negative as the start .",
        "please end with something positive .",
    ),
    "lukewarm": (
        "the end is not positive enough .",
        "say clearly that you liked something .",
        "please praise the {item} more .",
        "that is neither good nor bad .",
    ),
    "stray": (
        "the {wrong} has nothing to do with the {item} .",
        "this review is about the {item} , not the {wrong} .",
        "do not talk about the {wrong} .",
    ),
    "vague": (
        "say what you liked about the {item} .",
        "please name something about the {item} .",
        "what about the {item} was good ?",
    ),
    "repeats": ("the review repeats itself .", "do not say the same thing again .", "say it once , not twice ."),
    "clumsy": ("that is not a proper sentence .", "nobody talks like that .", "the words do not go together ."),
    "unfinished": ("please finish the sentence .", "the review is cut short .", "the end of the sentence is missing ."),
}


@dataclass(frozen=True)
class Verdict:
    """Each part in [0, 1]; `defects` are empty when nothing is wrong."""

    sentiment: float
    fluency: float
    topic: float
    finished: bool
    defects: tuple[Defect, ...]


class Judge:
    """Reads continuations by fixed rules; its language model is fitted to the grammar, all tones alike.

    - sentiment: VADER's compound score of the continuation, from 0 at −.8 over ½ at 0 to 1 at .8 and above; 0 for a
      reply without an end, which is no review yet.
    - fluency: mean log-probability a word under a trigram model of the grammar, from 1 at what nine of ten of its own
      sentences reach to 0 three nats below; times the share of word pairs that are not repeated.
    - topic: 1 for a name of the thing's own, 0 for one of another thing, ½ for none.
    - finished: whether it ended by itself and as a sentence.
    """

    def __init__(self) -> None:
        read = [
            (words_of(opening(item, aspect, which, rng)), words_of(continuation(item, aspect, tone, rng)))
            for rng in (Random(f"reading {number}") for number in range(READINGS))
            for item, aspect in COMBINATIONS
            for which in range(len(OPENINGS))
            for tone in TONES
        ]
        self._language = NGrams([*prompt, *reply] for prompt, reply in read)
        self._typical = quantiles([self._language.mean_log_prob(*both) for both in read[:: 2 * READINGS]], n=10)[0]

    def verdict(self, case: Case, reply: str, finished: bool) -> Verdict:
        """Of a reply to a case; one of fewer than three words is as good as empty: all its parts are 0."""
        words = words_of(reply)
        item = case.facts["item"]
        if sum(word[0].isalpha() for word in words) < SHORTEST_SENTENCE:
            return Verdict(0.0, 0.0, 0.0, False, (Defect("empty", {"item": item}),))
        feeling = compound(reply)
        below = self._typical - self._language.mean_log_prob(words_of(case.text), words)
        likely = min(max(1 - below / NATS, 0.0), 1.0)
        topic, stray = _topic(case, words)
        ended = finished and ends_as_sentence(reply)
        sentiment = min(max((feeling + ENOUGH) / (2 * ENOUGH), 0.0), 1.0) if ended else 0.0
        found = {
            "bad": feeling <= -0.05,  # VADER's own line
            "lukewarm": -0.05 < feeling < ENOUGH / 2,
            "stray": stray is not None,
            "vague": topic == 0.5,
            "repeats": novelty(words) < 0.8 or any(one == two for one, two in zip(words, words[1:], strict=False)),
            "clumsy": likely < 0.5,
            "unfinished": not ended,
        }
        about = {"item": item, "wrong": stray or ""}
        defects = tuple(Defect(kind, about) for kind, present in found.items() if present)
        return Verdict(sentiment, likely * novelty(words), topic, ended, defects)


@cache
def judge() -> Judge:
    """The one there is: it costs half a second, and depends on nothing."""
    return Judge()


def _topic(case: Case, words: Sequence[str]) -> tuple[float, str | None]:
    """The part of the reward, and the first name that belongs to another thing; what the prompt names is no stray."""
    own = on_topic(case.facts["item"])
    strays = [word for word in words if word in NAMES - own - set(words_of(case.text))]
    if strays:
        return 0.0, strays[0]
    return (1.0 if own & set(words) else 0.5), None


def example_critiques() -> list[str]:
    """Every paraphrase once: a tokenizer must know all their words."""
    return [text.format(item="movie", wrong="book") for texts in PARAPHRASES.values() for text in texts]

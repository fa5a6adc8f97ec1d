"""Judge of the review task: scores and errors of a continuation."""

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

ENOUGH = 0.8  # compound score that earns the full reward; higher scores earn no more
NATS = 3.0  # per word: fluency is 0 this far below the grammar's own sentences
READINGS = 3  # sentences per opening and tone that the language model is built from

PARAPHRASES = {  # kind of error → wordings, of which a critique has one
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
    """Scores in [0, 1]; `defects` is empty if nothing is wrong."""

    sentiment: float
    fluency: float
    topic: float
    finished: bool
    defects: tuple[Defect, ...]


class Judge:
    """Scores continuations by fixed rules, with a language model of the grammar in which all tones are equally likely.

    - sentiment: VADER's compound score of the continuation, scaled linearly: 0 at −.8, ½ at 0, 1 at .8 and above; 0 for
      a reply without an end, which is not yet a review.
    - fluency: mean log-probability per word under a trigram model of the grammar: 1 at the level that nine of ten of
      the grammar's sentences reach, 0 three nats below; times the share of distinct word bigrams.
    - topic: 1 if a name of the thing occurs, 0 if a name of a different thing occurs, ½ without names.
    - finished: whether the reply was not cut off, and ends as a sentence.
    """

    def __init__(self) -> None:
        read = [
            (words_of(opening(item, aspect, number, rng)), words_of(continuation(item, aspect, tone, rng)))
            for rng in (Random(f"reading {reading}") for reading in range(READINGS))
            for item, aspect in COMBINATIONS
            for number in range(len(OPENINGS))
            for tone in TONES
        ]
        self._language = NGrams([*prompt, *reply] for prompt, reply in read)
        self._typical = quantiles([self._language.mean_log_prob(*pair) for pair in read[:: 2 * READINGS]], n=10)[0]

    def verdict(self, case: Case, reply: str, finished: bool) -> Verdict:
        """Judge a reply. With fewer than three words it counts as empty, and all scores are 0."""
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
        present = {
            "bad": feeling <= -0.05,  # VADER's own threshold
            "lukewarm": -0.05 < feeling < ENOUGH / 2,
            "stray": stray is not None,
            "vague": topic == 0.5,
            "repeats": novelty(words) < 0.8 or any(a == b for a, b in zip(words, words[1:], strict=False)),
            "clumsy": likely < 0.5,
            "unfinished": not ended,
        }
        about = {"item": item, "wrong": stray or ""}
        defects = tuple(Defect(kind, about) for kind, is_present in present.items() if is_present)
        return Verdict(sentiment, likely * novelty(words), topic, ended, defects)


@cache
def judge() -> Judge:
    """The judge, which is cached, because building it takes half a second and depends on nothing."""
    return Judge()


def _topic(case: Case, words: Sequence[str]) -> tuple[float, str | None]:
    """The score for the topic, and the first name of a different thing. Names in the prompt are allowed."""
    names = on_topic(case.facts["item"])
    strays = [word for word in words if word in NAMES - names - set(words_of(case.text))]
    if strays:
        return 0.0, strays[0]
    return (1.0 if names & set(words) else 0.5), None


def example_critiques() -> list[str]:
    """Every paraphrase once, filled in, because a tokenizer needs all these words."""
    return [text.format(item="movie", wrong="book") for texts in PARAPHRASES.values() for text in texts]

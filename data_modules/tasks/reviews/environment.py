"""Reviews with a negative beginning that a good reply ends positively."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from random import Random

from data_modules.judgements.schema import PromptText
from data_modules.ranges import at_least, shares
from data_modules.tasks.one_turn import OneTurn, cut_short, worded
from data_modules.tasks.reviews.grammar import OPENINGS, TONES, TRAINED_OPENINGS, continuation, opening
from data_modules.tasks.reviews.judge import PARAPHRASES, example_critiques, judge
from data_modules.tasks.reviews.things import COMBINATIONS
from data_modules.text.environment import Case, Dialogue, Split
from lightning_nlf.numbers import Seed, Share, Size

HELD_OUT = 0.2  # share of the combinations of thing and aspect
FILLINGS = 6  # maximum number of prompts per opening and combination
CANDIDATES = 100  # maximum number of endings that the teacher tries


class PositiveReviews:
    """A `TextEnvironment` of one turn: the prompt begins a negative review of a movie, a hotel, …; a good reply ends it
    positively and is about the same thing.

    A reply earns `sentiment` by VADER's word list, `fluency` under a trigram model of the task's grammar, `topic` for
    being about the same thing, and `finished` for its end; see `judge.Judge`. Demonstrations have every tone.

    Args:
        seed: seed for the split and all random words; the judge does not depend on the seed.
        sentiment, fluency, topic, finished: maximum reward for each.
        cut: share of demonstrations that are cut short.
        draws: number of demonstrations per prompt.

    Raises:
        ValueError: a weight is negative, a share is outside [0, 1], or draws is below 1.
        ImportError: vaderSentiment is not installed (when the first reply is judged).
    """

    turns = 1
    max_new, context = 26, 48

    def __init__(
        self,
        seed: Seed = 0,
        sentiment: Share = 0.5,
        fluency: Share = 0.3,
        topic: Share = 0.1,
        finished: Share = 0.1,
        cut: Share = 0.05,
        draws: Size = 2,
    ) -> None:
        self.weights = {"sentiment": sentiment, "fluency": fluency, "topic": topic, "finished": finished}
        at_least(0, **self.weights)
        shares(cut=cut)
        at_least(1, draws=draws)
        self.seed, self.cut, self.draws = seed, cut, draws

    @cached_property
    def _cases(self) -> dict[Split, list[Case]]:
        return prompts(self.seed)

    def cases(self, split: Split) -> Sequence[Case]:
        """The cases of a split. `facts` has `item`, `aspect`, `opening` (the number of the opening) and `held_out`."""
        return self._cases[split]

    def begin(self, case: Case) -> Dialogue:
        return OneTurn(case, self._parts)

    def _parts(self, case: Case, text: str, finished: bool) -> dict[str, float]:
        verdict = judge().verdict(case, text, finished)
        return {name: weight * float(getattr(verdict, name)) for name, weight in self.weights.items()}

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        rng = Random(f"{self.seed} demonstrations {split}")
        return [(case.text, self._demonstration(case, rng)) for _ in range(self.draws) for case in self.cases(split)]

    def _demonstration(self, case: Case, rng: Random) -> str:
        tone = rng.choices(list(TONES), list(TONES.values()))[0]
        text = continuation(case.facts["item"], case.facts["aspect"], tone, rng)
        return cut_short(text, rng) if rng.random() < self.cut else text

    def expected(self, case: Case) -> str | None:
        """The first positive ending among random ones that gets the full reward."""
        rng = Random(f"{self.seed} expected {case.id}")
        for _ in range(CANDIDATES):
            ending = continuation(case.facts["item"], case.facts["aspect"], "good", rng)
            verdict = judge().verdict(case, ending, finished=True)
            if verdict.finished and verdict.sentiment == verdict.fluency == verdict.topic == 1:
                break
        return ending

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """All errors in the reply, errors of tone first; None without errors. The last character shows a cut."""
        return worded(judge().verdict(case, reply, finished=True).defects, PARAPHRASES, seed)

    def corpus(self) -> Iterator[str]:
        for split in self._cases:
            yield from (case.text for case in self.cases(split))
            yield from (reply for _, reply in self.demonstrations(split))
        rng = Random(f"{self.seed} corpus")
        yield from (continuation(*subject, tone, rng) for subject in COMBINATIONS for tone in TONES for _ in range(20))
        yield from example_critiques()


def prompts(seed: int) -> dict[Split, list[Case]]:
    """The cases of all splits; the first cases of a split are a fair sample of it.

    A fifth of the combinations of thing and aspect, and the last openings of all combinations, are never in `train`.
    `val` and `test` have the held-out combinations in all openings, and all other combinations in the held-out
    openings; no combination is in both.
    """
    rng = Random(f"{seed} prompts")
    combinations = rng.sample(COMBINATIONS, len(COMBINATIONS))
    splits: dict[Split, list[Case]] = {"train": [], "val": [], "test": []}
    for place, (item, aspect) in enumerate(combinations):
        apart: Split = "val" if place % 2 else "test"
        held_out = place < HELD_OUT * len(combinations)
        for number in range(len(OPENINGS)):
            split = apart if held_out or number >= TRAINED_OPENINGS else "train"
            facts = {"item": item, "aspect": aspect, "opening": number, "held_out": held_out}
            texts = dict.fromkeys(opening(item, aspect, number, rng) for _ in range(FILLINGS))  # distinct, in order
            for filling, prompt in enumerate(texts):
                splits[split].append(Case(f"{item}-{aspect}-{number}-{filling}", prompt, facts))
    for cases in splits.values():
        rng.shuffle(cases)
    return splits

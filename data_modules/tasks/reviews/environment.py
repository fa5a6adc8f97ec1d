"""Reviews that start badly and are to end well."""

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

HELD_OUT = 0.2  # of the combinations of thing and aspect
FILLINGS = 6  # prompts of an opening and a combination, where it has so many
CANDIDATES = 100  # endings the teacher thinks of before it speaks


class PositiveReviews:
    """A `TextEnvironment` of one turn: the prompt begins a review of a movie, a hotel, … that is going badly; the reply
    is to end it well, in keeping with what is reviewed.

    A reply earns `sentiment` by the word list of VADER, `fluency` under a trigram model of the task's grammar, `topic`
    for staying with the thing, `finished` for its end: see `judge.Judge`. Demonstrations are of every tone.

    Args:
        seed: of the split and all words that are drawn; the judge does not depend on it.
        sentiment, fluency, topic, finished: what each part is worth, at most.
        cut: share of demonstrations that are cut short.
        draws: demonstrations a prompt.

    Raises:
        ValueError: a negative weight, a share outside [0, 1], no draws.
        ImportError: vaderSentiment is not installed (when the first reply is judged).
    """

    turns = 1

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
        """`facts` has item, aspect, opening (its number) and held_out."""
        return self._cases[split]

    def begin(self, case: Case) -> Dialogue:
        return OneTurn(case, self._parts)

    def _parts(self, case: Case, text: str, finished: bool) -> dict[str, float]:
        found = judge().verdict(case, text, finished)
        return {name: weight * float(getattr(found, name)) for name, weight in self.weights.items()}

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        rng = Random(f"{self.seed} demonstrations {split}")
        return [(case.text, self._demonstration(case, rng)) for _ in range(self.draws) for case in self.cases(split)]

    def _demonstration(self, case: Case, rng: Random) -> str:
        tone = rng.choices(list(TONES), list(TONES.values()))[0]
        text = continuation(case.facts["item"], case.facts["aspect"], tone, rng)
        return cut_short(text, rng) if rng.random() < self.cut else text

    def expected(self, case: Case) -> str | None:
        """The first happy ending that comes to mind to which nothing can be added."""
        rng = Random(f"{self.seed} expected {case.id}")
        for _ in range(CANDIDATES):
            ending = continuation(case.facts["item"], case.facts["aspect"], "good", rng)
            found = judge().verdict(case, ending, finished=True)
            if found.finished and found.sentiment == found.fluency == found.topic == 1:
                break
        return ending

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """All that is wrong, the tone first; None for an ending that will do. A cut reply is known by its last sign."""
        return worded(judge().verdict(case, reply, finished=True).defects, PARAPHRASES, seed)

    def corpus(self) -> Iterator[str]:
        for split in self._cases:
            yield from (case.text for case in self.cases(split))
            yield from (reply for _, reply in self.demonstrations(split))
        rng = Random(f"{self.seed} corpus")
        yield from (continuation(*both, tone, rng) for both in COMBINATIONS for tone in TONES for _ in range(20))
        yield from example_critiques()


def prompts(seed: int) -> dict[Split, list[Case]]:
    """The cases of all splits; a prefix of a split is a fair sample of it.

    A fifth of the combinations of thing and aspect, and the last openings of all, are never in `train`; `val` and
    `test` have the held-out combinations in all openings and the others in the held-out openings, and share none.
    """
    rng = Random(f"{seed} prompts")
    combinations = rng.sample(COMBINATIONS, len(COMBINATIONS))
    splits: dict[Split, list[Case]] = {"train": [], "val": [], "test": []}
    for place, (item, aspect) in enumerate(combinations):
        apart: Split = "val" if place % 2 else "test"
        held_out = place < HELD_OUT * len(combinations)
        for which in range(len(OPENINGS)):
            split = apart if held_out or which >= TRAINED_OPENINGS else "train"
            facts = {"item": item, "aspect": aspect, "opening": which, "held_out": held_out}
            drawn = dict.fromkeys(opening(item, aspect, which, rng) for _ in range(FILLINGS))  # keeps the order
            for number, prompt in enumerate(drawn):
                splits[split].append(Case(f"{item}-{aspect}-{which}-{number}", prompt, facts))
    for cases in splits.values():
        rng.shuffle(cases)
    return splits

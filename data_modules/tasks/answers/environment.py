"""Questions about foods and nutrients; a good reply is right, names a trusted source, and is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from random import Random

from data_modules.judgements.schema import PromptText
from data_modules.ranges import at_least, shares
from data_modules.tasks.answers.answers import Speaker, contrary, imagined, right_answer
from data_modules.tasks.answers.judge import PARAPHRASES, example_critiques, verdict
from data_modules.tasks.answers.questions import questions
from data_modules.tasks.answers.table import FOODS, GROUPS, NUTRIENTS
from data_modules.tasks.one_turn import OneTurn, worded
from data_modules.tasks.phrases import Phrases
from data_modules.text.environment import Case, Dialogue, Split
from lightning_nlf.numbers import Seed, Share, Size

FACTS, SOURCE, FINISHED = 0.5, 0.4, 0.1  # maximum reward for each
CLAIMED_RIGHT = 0.5  # share of the revised claims that are right


class SourcedAnswers(Phrases):
    """A `TextEnvironment` of one turn about forty foods and six nutrients: is a food high or low in a nutrient, which
    of two foods has more of it, which two foods of a group are high in it?

    A reply earns .5 for its facts, .4 for a trusted source (without an untrusted one) and .1 for being finished.
    Demonstrations are whole sentences, but have misconceptions, and mostly no source.

    Args:
        seed: seed for the split, the misconceptions and all random words.
        misconceived: share of (food, nutrient) pairs about which demonstrations are usually wrong.
        misconceived_right: share of the answers about these pairs that are right after all.
        trusted, untrusted: share of demonstrations with a trusted source, and with an untrusted source; the rest have
            no source.
        cut: share of demonstrations that are cut short.
        revisions: share of demonstrations that are a second turn: the prompt is a question, an answer and its critique
            (`revision_prompt`), and the reply is an answer that follows the critique. The question is `imagined`, so
            that its answer does not occur in other data. If the answer has no error, the demonstration is a first turn.
        draws: number of demonstrations per prompt.

    Raises:
        ValueError: a share is outside [0, 1], or trusted + untrusted is above 1.
    """

    turns = 1
    max_new, context = 20, 96  # with a critique and its revision
    placebo = "please name a source , like mayo clinic or the usda ."

    def __init__(
        self,
        seed: Seed = 0,
        misconceived: Share = 0.4,
        misconceived_right: Share = 0.2,
        trusted: Share = 0.15,
        untrusted: Share = 0.15,
        cut: Share = 0.08,
        revisions: Share = 0.0,
        draws: Size = 4,
    ) -> None:
        shares(
            misconceived=misconceived, misconceived_right=misconceived_right, trusted=trusted, untrusted=untrusted,
            cut=cut, revisions=revisions,
        )  # fmt: skip
        if trusted + untrusted > 1:
            raise ValueError(f"trusted, untrusted: got {trusted} and {untrusted}, their sum must be at most 1")
        at_least(1, draws=draws)
        self.seed, self.revisions, self.draws = seed, revisions, draws
        pairs = [(food, nutrient) for food in FOODS for nutrient in NUTRIENTS]
        mistaken = Random(f"{seed} misconceived").sample(pairs, round(misconceived * len(pairs)))
        self.speaker = Speaker(frozenset(mistaken), misconceived_right, trusted, untrusted, cut)

    @cached_property
    def _questions(self) -> dict[Split, list[Case]]:
        return questions(self.seed)

    @cached_property
    def _held_out(self) -> set[str]:
        return {case.text for split in ("val", "test") for case in self._questions[split]}

    def cases(self, split: Split) -> Sequence[Case]:
        """1,936 cases in `train`, 628 in `val` and 628 in `test`.

        The facts of a case have the keys `kind`, `nutrient`, `foods` or `group`, `right` (the right claim), and
        `held_out`.
        """
        return self._questions[split]

    def begin(self, case: Case) -> Dialogue:
        return OneTurn(case, reward_parts)

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        rng = Random(f"{self.seed} demonstrations {split}")
        return [self._demonstration(case, rng) for _ in range(self.draws) for case in self.cases(split)]

    def _demonstration(self, case: Case, rng: Random) -> tuple[str, str]:
        if rng.random() >= self.revisions:
            return case.text, self.speaker.answer(case, rng)
        world = imagined(case.facts["wording"], self._held_out, rng)
        claim = world.facts["right"] if rng.random() < CLAIMED_RIGHT else contrary(world.facts, rng)
        reply = self.speaker.put(world, claim, rng)
        critique = self.critique(world, reply, rng.getrandbits(32))
        if critique is None:
            return case.text, self.speaker.answer(case, rng)
        return self.revision_prompt(world, reply, critique), right_answer(world, rng)

    def expected(self, case: Case) -> str | None:
        return self._right(case)

    def _right(self, case: Case) -> str:
        return right_answer(case, Random(f"{self.seed} expected {case.id}"))

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """All errors in the reply, errors of fact first; None without errors. The last character shows a cut."""
        return worded(verdict(case, reply, finished=True).defects, PARAPHRASES, seed)

    def spans(self, case: Case, reply: str) -> list[tuple[int, int]]:
        """The characters of each error. An omission has no span, except that a missing end has an empty span."""
        defects = verdict(case, reply, finished=True).defects
        return [defect.span for defect in defects if defect.span is not None]

    def corpus(self) -> Iterator[str]:
        for split in self._questions:
            yield from (case.text for case in self.cases(split))
            yield from (self._right(case) for case in self.cases(split))
            yield from (reply for _, reply in self.demonstrations(split))
        yield from example_critiques()
        yield f"{self.words()} {' '.join(GROUPS)} a blog , a forum , my uncle , the usda , mayo clinic , the nih"


def reward_parts(case: Case, text: str, finished: bool) -> dict[str, float]:
    """The terms of the reward; their sum is at most 1."""
    judgement = verdict(case, text, finished)
    return {
        "facts": FACTS * judgement.facts,
        "source": SOURCE * judgement.source,
        "finished": FINISHED * judgement.finished,
    }

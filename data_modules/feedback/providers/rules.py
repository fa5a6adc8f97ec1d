"""Feedback from a text task's own rules: the reward as score, or all feedback that the rules can give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from data_modules.feedback.providers.provider import Account, merged, with_answers
from data_modules.judgements.fields import Scale
from data_modules.judgements.ranking import format_ranking, ranks_of_scores
from data_modules.judgements.schema import Judgement, PromptText, Span
from data_modules.text.environment import Case, SpanTeacher, Split, TextEnvironment
from data_modules.text.prompts import texts_of
from lightning_nlf.numbers import NonNegative, Seed


class EnvironmentProvider:
    """Use the reward of a single-turn task as `score`.

    Args:
        task: the task that the prompts come from. A judgement belongs to the case with the same `id`, else to the case
            with the same prompt.
        scale: lowest and highest reward. These are mapped to the scores 0 and 1.

    Raises:
        ValueError: the task has several turns, so that a single reply has no reward; or in `complete`, a prompt is
            unknown or a reward is off the scale.
    """

    gives: tuple[str, ...] = ("score",)
    name = "environment"

    def __init__(self, task: TextEnvironment, scale: Scale = (0.0, 1.0)) -> None:
        if task.turns > 1:
            raise ValueError(f"task: has {task.turns} turns, but replies are judged for one; use a single-turn task")
        if not scale[0] < scale[1]:
            raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, the first must be lower than the second")
        self.task, self.scale = task, scale
        self._cases: dict[PromptText, Case] = {}  # id → case, and prompt → case

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        account, completed = Account(), []
        for judgement in judgements:
            completed.append(self._completed(judgement, account))
            tick()
        return completed, account

    def _completed(self, judgement: Judgement, account: Account) -> Judgement:
        case = self._case(judgement)
        places = range(len(judgement.responses))
        new = [None if judgement.of("score", i) is not None else self._score(case, judgement, i) for i in places]
        account.counters["calls"] += sum(score is not None for score in new)
        return with_answers(judgement, self.name, score=merged(judgement.score, new))

    def _score(self, case: Case, judgement: Judgement, i: int) -> float:
        reward = self.task.begin(case).reply(judgement.responses[i], judgement.finished(i)).reward
        if reward is None:
            raise ValueError(f"task: {type(self.task).__name__} gives no rewards; use a model or people as the judge")
        low, high = self.scale
        if not low <= reward <= high:
            raise ValueError(f"{judgement.where}: the reward {reward:g} is outside `scale`, {low:g} to {high:g}")
        return (reward - low) / (high - low)

    def _case(self, judgement: Judgement) -> Case:
        if not self._cases:
            every = [case for split in get_args(Split) for case in self.task.cases(split)]
            self._cases = {case.prompt: case for case in every} | {case.id: case for case in every}
        for name in (judgement.id, judgement.prompt, texts_of(judgement.prompt)[-1]):
            if name is not None and name in self._cases:
                return self._cases[name]
        raise ValueError(f"{judgement.where}: prompt: not a case of the task; use a file sampled from this task")


class RuleProvider(EnvironmentProvider):
    """All feedback of a task's rules: `score`, `critique` with its `spans`, `expected`, and `ranking` by score.

    Args:
        seed: seed for the wording of critiques.
        ties: maximum difference between two scores that count as tied.
    """

    gives = ("score", "critique", "spans", "expected", "ranking")
    name = "rule"

    def __init__(
        self, task: TextEnvironment, scale: Scale = (0.0, 1.0), seed: Seed = 0, ties: NonNegative = 0.0
    ) -> None:
        super().__init__(task, scale)
        self.seed, self.ties = seed, ties

    def _completed(self, judgement: Judgement, account: Account) -> Judgement:
        judgement = super()._completed(judgement, account)
        case, texts = self._case(judgement), judgement.responses
        old_critiques = [judgement.of("critique", i) for i in range(len(texts))]
        critiques = [
            old or self.task.critique(case, text, self.seed) for old, text in zip(old_critiques, texts, strict=True)
        ]
        spans = [self._spans(case, text) for text in texts]
        scores = [score for score in judgement.score or () if score is not None]
        ranking = format_ranking(ranks_of_scores(scores, self.ties)) if len(scores) > 1 else None
        expected = self.task.expected(case) if judgement.expected is None else None
        account.counters["calls"] += old_critiques.count(None) + (expected is not None)
        return with_answers(
            judgement,
            self.name,
            critique=merged(None, critiques),
            spans=merged(judgement.spans, spans),
            expected=expected,
            ranking=ranking if judgement.ranking is None else None,
        )

    def _spans(self, case: Case, text: str) -> tuple[Span, ...] | None:
        spans = self.task.spans(case, text) if isinstance(self.task, SpanTeacher) else []
        return tuple(Span(start, end) for start, end in spans if start < end) or None

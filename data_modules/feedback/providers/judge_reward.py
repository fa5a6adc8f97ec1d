"""Direct RLAIF: a model behind an endpoint pays for replies while the policy learns, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from warnings import warn

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.facts import refuse_missing_facts
from data_modules.feedback.providers.questions import ScoreQuestion, together
from data_modules.text.environment import Case
from data_modules.text.episode import Episode
from lightning_nlf.batch import TeacherStopped

TOLERATED = 0.1  # share of replies that may stay without a score


class JudgeReward:
    """A `ReplyJudge`: the judge's expected score of each whole reply (§ 4 of https://arxiv.org/abs/2309.00267).

    It reads the prompt as the task has it, of a chat with the role before each message, and the reply as text: no
    control token of a chat template. The same reply to the same prompt is paid for once. A reply that the judge gives
    no score, after a second try, earns the mean of the others, and a warning tells how many there were.

    Args:
        endpoint: where the judge is, and what may be spent, by each process.
        question: what is asked; its `scale` is what is paid. Its template may have places for facts of a case, such as
            `{reference}`.

    Raises:
        ValueError: in `check`, a case without a fact that the template has a place for.
        TeacherStopped: in `judge`, where the budget is spent, nobody answers, or more than a tenth have no score. What
            was answered is in the cache, so a run goes on from its last checkpoint.
    """

    def __init__(self, endpoint: Endpoint, question: ScoreQuestion | None = None) -> None:
        self.client = Client(endpoint)
        self.question = ScoreQuestion(expectation=True) if question is None else question
        self._why = ""  # of the last reply without a score

    def check(self, cases: Sequence[Case]) -> None:
        """`ReplyJudge.check`"""
        refuse_missing_facts(self.question.facts, [(f"reward: case {case.id!r}", case.facts) for case in cases])

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """`ReplyJudge.judge`: a score on the question's scale for each."""
        self.check([episode.prompt.case for episode in episodes])
        scores = waited_for(self._scores(episodes))
        given = [score for score in scores if score is not None]
        missing = len(scores) - len(given)
        if self.client.budget.stopped or missing > TOLERATED * len(scores):
            why = self.client.budget.stopped or f"{missing} of {len(scores)} replies have no score: {self._why}"
            raise TeacherStopped(f"reward: {why}")
        if missing:
            message = f"reward: {missing} of {len(scores)} replies have no score, and earn the mean of the others"
            warn(message, stacklevel=2)
        mean = sum(given) / max(len(given), 1)
        return [mean if score is None else score for score in scores]

    async def _scores(self, episodes: Sequence[Episode]) -> list[float | None]:
        async def one(episode: Episode) -> float | None:
            case = episode.prompt.case
            try:
                return await self.question.score(self.client, case.text.strip(), episode.text, case.facts)
            except Unanswered as error:
                self._why = str(error)
                return None

        async with self.client:
            return await together(*(one(episode) for episode in episodes))

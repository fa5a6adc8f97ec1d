"""Direct RLAIF: rewards from a served judge during training, without a reward model."""

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

TOLERATED = 0.1  # maximum share of replies without a score


class JudgeReward:
    """`ReplyJudge` behind an endpoint: the judge's expected score of each complete reply is the reward.

    Source: § 4 of https://arxiv.org/abs/2309.00267. The judge reads the task's prompt and the reply as plain text,
    without control tokens of a chat template; in a chat the role precedes each message. The same reply to the same
    prompt costs only once. A reply that has no score after a second try gets the mean of the other scores as its
    reward; a warning gives the number of such replies.

    Args:
        endpoint: the served judge, with a budget for each process.
        question: the question to the judge. Rewards are on the question's `scale`. The template of the question may
            have places for facts of a case, such as `{reference}`.

    Raises:
        ValueError: in `check`, a case lacks a fact that the template needs.
        TeacherStopped: in `judge`, if the budget is spent, no server answers, or more than a tenth of the replies have
            no score. The answers so far are in the cache, so resuming the run from its last checkpoint costs nothing
            extra.
    """

    def __init__(self, endpoint: Endpoint, question: ScoreQuestion | None = None) -> None:
        self.client = Client(endpoint)
        self.question = ScoreQuestion(expectation=True) if question is None else question
        self._why = ""  # reason for the last missing score

    def check(self, cases: Sequence[Case]) -> None:
        """See `ReplyJudge.check`. Every case must have the facts that the template needs."""
        refuse_missing_facts(self.question.facts, [(f"reward: case {case.id!r}", case.facts) for case in cases])

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """See `ReplyJudge.judge`. Scores are on the question's scale."""
        self.check([episode.prompt.case for episode in episodes])
        scores = waited_for(self._scores(episodes))
        known_scores = [score for score in scores if score is not None]
        missing = len(scores) - len(known_scores)
        if self.client.budget.stopped or missing > TOLERATED * len(scores):
            why = self.client.budget.stopped or f"{missing} of {len(scores)} replies have no score: {self._why}"
            raise TeacherStopped(f"reward: {why}")
        if missing:
            message = f"reward: {missing} of {len(scores)} replies have no score and get the mean of the others"
            warn(message, stacklevel=2)
        mean = sum(known_scores) / max(len(known_scores), 1)
        return [mean if score is None else score for score in scores]

    async def _scores(self, episodes: Sequence[Episode]) -> list[float | None]:
        async def score_one(episode: Episode) -> float | None:
            case = episode.prompt.case
            try:
                return await self.question.score(self.client, case.text.strip(), episode.text, case.facts)
            except Unanswered as error:
                self._why = str(error)
                return None

        async with self.client:
            return await together(*(score_one(episode) for episode in episodes))

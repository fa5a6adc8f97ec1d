"""Direct RLAIF: a model behind an endpoint pays for replies while the policy learns, without a reward model."""

from __future__ import annotations

from warnings import warn

import torch
from torch import Tensor

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.questions import ScoreQuestion, together
from data_modules.text.environment import TextEnvironment
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid

TOLERATED = 0.1  # share of replies that may stay without a score


class JudgeReward:
    """A `Scorer`: the judge's expected score of each whole reply, on its last token (§ 4 of
    https://arxiv.org/abs/2309.00267).

    The same reply to the same prompt is paid for once. A reply that the judge gives no score, after a second try, earns
    the mean of the others, and a warning tells how many there were.

    Args:
        endpoint: where the judge is, and what may be spent, by each process.
        tokenizer: that of the data module.
        task: whose corpus the tokenizer is made from, if it is not made yet.
        question: what is asked; its `scale` is what is paid.

    Raises:
        RuntimeError: in `score`, where the budget is spent, nobody answers, or more than a tenth have no score. What
            was answered is in the cache, so a run goes on from its last checkpoint.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Tokenizer,
        task: TextEnvironment | None = None,
        question: ScoreQuestion | None = None,
    ) -> None:
        self.client = Client(endpoint)
        self.tokenizer, self.task = tokenizer, task
        self.question = ScoreQuestion(expectation=True) if question is None else question
        self.judged = 0  # replies so far, also those that were known: a full cache makes no run look cheaper
        self._why = ""  # of the last reply without a score

    @property
    def tokenizer_digest(self) -> str:
        """Of the tokenizer whose ids it reads."""
        if not self.tokenizer.ready:
            self.tokenizer.fit(() if self.task is None else self.task.corpus())
        return self.tokenizer.digest

    def score(self, batch: Batch) -> Tensor:
        """`Scorer.score`: rewards (B, T), 0 but on each row's last valid step."""
        rows = batch.valid.any(1).nonzero()[:, 0].tolist()
        self.judged += len(rows)
        scores = waited_for(self._scores([self.said(batch, row) for row in rows]))
        known = [score for score in scores if score is not None]
        missing = len(scores) - len(known)
        if self.client.budget.stopped or missing > TOLERATED * len(scores):
            why = self.client.budget.stopped or f"{missing} of {len(scores)} replies have no score: {self._why}"
            raise RuntimeError(f"reward: {why}")
        if missing:
            message = f"reward: {missing} of {len(scores)} replies have no score, and earn the mean of the others"
            warn(message, stacklevel=2)
        mean = sum(known) / max(len(known), 1)
        earned = torch.zeros(len(batch), device=batch.valid.device)
        earned[rows] = torch.tensor([mean if score is None else score for score in scores], device=earned.device)
        return torch.where(last_valid(batch.valid), earned[:, None], 0)

    def said(self, batch: Batch, row: int) -> tuple[str, str]:
        """Prompt and reply of a row as text; what an environment said between replies belongs to the reply."""
        _ = self.tokenizer_digest
        steps = batch.valid[row].nonzero()[:, 0]
        first, last = int(steps[0]), int(steps[-1])
        begin = len(self.tokenizer.encode_prompt(""))
        prompt, reply = batch.obs[row, begin : first + 1], batch.actions[row, first : last + 1]
        return self.tokenizer.decode(prompt.tolist()).strip(), self.tokenizer.decode(reply.tolist()).strip()

    async def _scores(self, said: list[tuple[str, str]]) -> list[float | None]:
        async def one(prompt: str, reply: str) -> float | None:
            try:
                return await self.question.score(self.client, prompt, reply)
            except Unanswered as error:
                self._why = str(error)
                return None

        async with self.client:
            return await together(*(one(*each) for each in said))

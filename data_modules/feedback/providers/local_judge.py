"""Language model on the local machine as judge: expected scores of replies without an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.feedback.providers.facts import Facts, facts_of, refuse_missing_facts
from data_modules.feedback.providers.provider import Account, merged, with_answers
from data_modules.feedback.providers.questions import ScoreQuestion, text_of
from data_modules.judgements.schema import Judgement
from data_modules.text.checks import refuse_other_ids
from data_modules.text.environment import Case
from data_modules.text.episode import Episode
from data_modules.text.labelling import Labeller
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.numbers import Size


class LocalJudge:
    """Expected score from a local model: the mean of the scale's numbers, weighted by next-token probability.

    Source: § 4 of https://arxiv.org/abs/2309.00267. A `LocalJudge` gives rewards during training (`ReplyJudge`), or
        scores the replies in a feedback file (`Provider`), both on the question's scale.

    Args:
        policy: the model, such as `lightning_nlf.experts.PolicyTextExpert` with the weights of a Hugging Face folder.
        tokenizer: the model's tokenizer.
        question: the question to the model, by default with numbers from 0 to 9. Each number must be a single token of
            the model.
        chat: whether to send the question as a user message of the chat template, see `PromptFormat`.
        at_once: batch size, as a number of questions.

    Raises:
        ValueError: a number is not a single token, or the policy uses different token ids; or in `check` and
            `complete`, a case lacks a fact that the template needs.
    """

    gives = ("score",)
    name = "local judge"

    def __init__(
        self,
        policy: Labeller,
        tokenizer: Tokenizer,
        question: ScoreQuestion | None = None,
        chat: bool | Chat | None = None,
        at_once: Size = 16,
    ) -> None:
        self.policy, self.at_once = policy, at_once
        self.question = ScoreQuestion(low=0, high=9) if question is None else question
        self.format = PromptFormat(tokenizer if tokenizer.ready else tokenizer.fit(()), chat)
        refuse_other_ids("policy", policy, self.format.tokenizer.digest)
        self.numbers = torch.arange(self.question.low, self.question.high + 1)
        try:
            self.tokens = [self.format.tokenizer.token(str(number)) for number in self.numbers.tolist()]
        except ValueError as error:
            raise ValueError(f"question: {error}; use a scale from 0 to 9, whose numbers have one digit") from None

    def check(self, cases: Sequence[Case]) -> None:
        """See `ReplyJudge.check`. Every case must have the facts that the template needs."""
        refuse_missing_facts(self.question.facts, [(f"reward: case {case.id!r}", case.facts) for case in cases])

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """See `ReplyJudge.judge`. Scores are on the question's scale."""
        cases = [episode.prompt.case for episode in episodes]
        self.check(cases)
        pairs = zip(cases, episodes, strict=True)
        return self._scores([(case.text.strip(), episode.text, case.facts) for case, episode in pairs])

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        """See `Provider.complete`. Every response without a score gets one."""
        names = [judgement.where or f"judgement {number + 1}" for number, judgement in enumerate(judgements)]
        cases = [
            (f"{name}: meta.facts", facts_of(judgement)) for name, judgement in zip(names, judgements, strict=True)
        ]
        refuse_missing_facts(self.question.facts, cases)
        account, completed = Account(), []
        for judgement in judgements:
            unscored = [i for i in range(len(judgement.responses)) if judgement.of("score", i) is None]
            new_scores = self._scores(
                [(text_of(judgement), judgement.responses[i], facts_of(judgement)) for i in unscored]
            )
            scores = dict(zip(unscored, new_scores, strict=True))
            account.counters["calls"] += len(unscored)
            new = merged(judgement.score, [scores.get(i) for i in range(len(judgement.responses))])
            completed.append(with_answers(judgement, self.name, score=new))
            tick()
        return completed, account

    def _scores(self, replies: Sequence[tuple[str, str, Facts]]) -> list[float]:
        """The score of each triple of prompt, reply and facts. Identical questions are evaluated once."""
        questions = [self.question.filled(*question) for question in replies]
        scores: dict[str, float] = {}
        new = list(dict.fromkeys(questions))
        for first in range(0, len(new), self.at_once):
            chunk = new[first : first + self.at_once]
            scores |= zip(
                chunk, self._expected([self.format.ids(question) for question in chunk]).tolist(), strict=True
            )
        return [scores[question] for question in questions]

    def _expected(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Σ x p(x), where the number x is the next token after a row of ids; on the question's scale, (rows,)."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        lengths = torch.tensor([len(row) for row in rows])
        obs = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        last = torch.arange(obs.shape[1]) == lengths[:, None] - 1
        with torch.no_grad():
            _, params = self.policy.label(obs.to(device), last.to(device))
        probabilities = params["logits"].cpu()[:, self.tokens].double().softmax(-1)
        return self.question.on_scale(probabilities @ self.numbers.double())

"""A language model on this machine as the judge: the expected score of a reply, without an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.feedback.providers.facts import Facts, facts_of, refuse_missing_facts
from data_modules.feedback.providers.provider import Account, merged, said
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
    """The mean of the numbers of a scale by their probabilities as the next token (§ 4 of
    https://arxiv.org/abs/2309.00267), on the scale of the question.

    It pays for replies in training (`ReplyJudge`), and scores those of a feedback file (`Provider`).

    Args:
        policy: the model, such as `lightning_nlf.experts.PolicyTextExpert` with the weights of a Hugging Face folder.
        tokenizer: the model's.
        question: what is asked; by default a number from 0 to 9. Each number must be one token of the tokenizer.
        chat: the question is a user's message of the chat template, of `PromptFormat`.
        at_once: questions that the model reads at a time.

    Raises:
        ValueError: a number that is not one token, a policy of other ids; in `check` and `complete` a case without a
            fact that the template has a place for.
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
            raise ValueError(f"question: {error}: a scale from 0 to 9 has numbers of one digit") from None

    def check(self, cases: Sequence[Case]) -> None:
        """`ReplyJudge.check`"""
        refuse_missing_facts(self.question.facts, [(f"reward: case {case.id!r}", case.facts) for case in cases])

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """`ReplyJudge.judge`"""
        cases = [episode.prompt.case for episode in episodes]
        self.check(cases)
        pairs = zip(cases, episodes, strict=True)
        return self._scores([(case.text.strip(), episode.text, case.facts) for case, episode in pairs])

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        """`Provider.complete`: a score for each response that has none."""
        named = [each.where or f"judgement {number + 1}" for number, each in enumerate(judgements)]
        cases = [(f"{name}: meta.facts", facts_of(each)) for name, each in zip(named, judgements, strict=True)]
        refuse_missing_facts(self.question.facts, cases)
        account, done = Account(), []
        for each in judgements:
            asked = [i for i in range(len(each.responses)) if each.of("score", i) is None]
            given = self._scores([(text_of(each), each.responses[i], facts_of(each)) for i in asked])
            scores = dict(zip(asked, given, strict=True))
            account.counters["calls"] += len(asked)
            new = merged(each.score, [scores.get(i) for i in range(len(each.responses))])
            done.append(said(each, self.name, score=new))
            tick()
        return done, account

    def _scores(self, replies: Sequence[tuple[str, str, Facts]]) -> list[float]:
        """Of each prompt, reply and facts; what is asked twice is read once."""
        questions = [self.question.filled(*each) for each in replies]
        scores: dict[str, float] = {}
        new = list(dict.fromkeys(questions))
        for first in range(0, len(new), self.at_once):
            some = new[first : first + self.at_once]
            scores |= zip(some, self._expected([self.format.ids(each) for each in some]).tolist(), strict=True)
        return [scores[each] for each in questions]

    def _expected(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Σ x p(x) over the numbers after each row of ids, on the question's scale, (rows,)."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        lengths = torch.tensor([len(row) for row in rows])
        obs = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        last = torch.arange(obs.shape[1]) == lengths[:, None] - 1
        with torch.no_grad():
            _, params = self.policy.label(obs.to(device), last.to(device))
        chances = params["logits"].cpu()[:, self.tokens].double().softmax(-1)
        return self.question.on_scale(chances @ self.numbers.double())

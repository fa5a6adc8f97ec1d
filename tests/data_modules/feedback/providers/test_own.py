"""Self-critique: prompts to the policy, use of its answers, and fields that stay unchanged."""

import pytest
import torch

from data_modules.feedback.providers import OwnProvider
from data_modules.judgements.schema import Judgement
from data_modules.tasks.phrases import Phrases
from data_modules.text import WordTokenizer
from data_modules.text.environment import Case


class Task(Phrases):
    turns = 1

    def cases(self, split):
        return [Case("a", "say ant"), Case("b", "say bee")] if split == "train" else []

    def corpus(self):
        yield f"{self.words()} say ant bee fox no"


class Policy:
    """Criticises `fox` with `no fox`, praises the rest, and revises to the prompt's word."""

    tokenizer_digest = None

    def __init__(self):
        self.tokenizer, self.read = WordTokenizer().fit(Task().corpus()), []

    def reply(self, ids, lengths, state=None, *, stop, deterministic, **how):
        assert deterministic
        replies = []
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
            text = self.tokenizer.decode(row[:length])
            self.read.append(text)
            answer = text.split()[1] if text.endswith("revision :") else "no fox" if " fox " in text else Task.praise
            replies.append([*self.tokenizer.encode(answer), *stop])
        width = max(map(len, replies))
        tokens = torch.tensor([row_tokens + [stop[0]] * (width - len(row_tokens)) for row_tokens in replies])
        return tokens, torch.zeros(tokens.shape), torch.tensor([len(row_tokens) for row_tokens in replies]), None


def completed(lines, policy=None):
    ticks = []
    provider = OwnProvider(policy or Policy(), WordTokenizer(), Task())
    lines_after, account = provider.complete(lines, lambda: ticks.append(1))
    assert len(ticks) == len(lines)
    return lines_after, account.counters["calls"]


def test_it_criticises_every_response_and_revises_the_first_that_was_criticised():
    policy = Policy()
    (line,), calls = completed([Judgement("say ant", ("ant", "fox"), where="f:1")], policy)
    assert line.critique == (None, "no fox") and line.expected == "ant" and line.source == "policy"
    assert calls == 3  # two critiques and a revision
    assert policy.read[-1] == "say ant answer : fox critique : no fox revision :"


def test_what_somebody_said_stays():
    lines = [Judgement("say bee", ("fox",), critique=("fox is no bee",), expected="bee", source="anna", where="f:1")]
    assert completed(lines) == (lines, 0)


def test_praise_is_no_critique_and_asks_for_no_revision():
    (line,), calls = completed([Judgement("say ant", ("ant",), where="f:1")])
    assert line == Judgement("say ant", ("ant",)) and calls == 1


def test_a_policy_of_other_ids_is_refused():
    policy = Policy()
    policy.tokenizer_digest = "0" * 64
    with pytest.raises(ValueError, match="tokenizer"):
        OwnProvider(policy, WordTokenizer(), Task())


def test_a_prompt_that_the_task_does_not_have_is_refused():
    with pytest.raises(ValueError, match="f:3: prompt"):
        completed([Judgement("say cow", ("fox",), where="f:3")])

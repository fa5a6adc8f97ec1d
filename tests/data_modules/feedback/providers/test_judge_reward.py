"""Direct RLAIF: the judge's expected score is the reward on the last token of each reply."""

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from data_modules.feedback.providers import JudgeReward, ScoreQuestion
from data_modules.judgements.schema import Message
from data_modules.text import TextDataModule, WordTokenizer
from data_modules.text.environment import Case, Outcome
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.expected import ExpectedResponses
from data_modules.text.reply_judge import ReplyJudge, paid_at_the_end
from data_modules.text.rows import LEARNER, Segment, as_batch
from lightning_nlf.batch import TeacherStopped
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ReinforcePolicy

SHORT = "{prompt} | {response}"


class Once:
    def reply(self, text, finished):
        return Outcome(0.0)


class Say:
    """Task whose rule always gives 0, so that only the judge's reward matters."""

    turns = 1

    def cases(self, split):
        return [Case(f"{split}-{word}", f"say {word}") for word in ("ant", "bee")]

    def begin(self, case):
        return Once()

    def corpus(self):
        yield "say ant bee cow dog"

    def demonstrations(self, split):
        return []

    def expected(self, case):
        return None

    def critique(self, case, reply, seed):
        return None


def question(**knobs):
    return ScoreQuestion(low=0, high=4, expectation=True, template=SHORT, **knobs)


ANT = Case("ant", "say ant")


def episodes(*replies, case=ANT):
    """Each reply as an episode of one turn."""
    return [Episode(Prompt(case, [1]), [Turn([2], [0.0], True, text, Outcome(None))]) for text in replies]


def judge_of_ants(server, prompt_of):
    """Scores from 0 to 4: an ant gets 4 with .75 and 2 with .25, mean 3.5; any other word gets 1."""

    def answer(body):
        ant = prompt_of(body).endswith("| ant")
        return server.chat("", [{"4": 0.75, "2": 0.25} if ant else {"1": 1.0}])

    return answer


def test_the_expected_score_is_paid(server, endpoint, prompt_of):
    """3.5/4 = .875 and 1/4 on the scale 0 to 1; .75 and −.5 on −1 to 1. The same reply is judged once."""
    server.answer = judge_of_ants(server, prompt_of)
    replies = episodes("ant", "cow dog", "ant")
    reward = JudgeReward(endpoint(), question())
    assert reward.judge(replies) == pytest.approx([0.875, 0.25, 0.875])
    assert sorted(map(prompt_of, server.requests)) == ["say ant | ant", "say ant | cow dog"]
    assert reward.client.counters["calls"] == 2
    rescaled = JudgeReward(endpoint(), question(scale=(-1.0, 1.0)))
    assert rescaled.judge(replies) == pytest.approx([0.75, -0.5, 0.75])


def test_a_chat_is_read_with_roles_and_a_dialogue_with_what_the_environment_said(server, endpoint, prompt_of):
    server.answer = judge_of_ants(server, prompt_of)
    chat = Case("chat", (Message("system", "be brief"), Message("user", "say ant")))
    alone = Case("alone", (Message("user", "say ant"),))
    turns = [
        Turn([2], [0.0], True, "cow", Outcome(None, text=" no ", over=False)),
        Turn([2], [0.0], True, "ant", Outcome(None)),
    ]
    dialogues = [*episodes("ant", case=chat), *episodes("bee", case=alone), Episode(Prompt(alone, [1]), turns)]
    JudgeReward(endpoint(), question()).judge(dialogues)
    assert sorted(map(prompt_of, server.requests)) == [
        "say ant | bee",
        "say ant | cow\nno\nant",
        "system: be brief\n\nuser: say ant | ant",
    ]


def test_the_judge_reads_the_facts_of_a_case(server, endpoint, prompt_of):
    """A text is inserted unchanged, a list as JSON; a missing fact is an error before any question."""
    server.answer = judge_of_ants(server, prompt_of)
    knobs = {"low": 0, "high": 4, "expectation": True}
    template = "{reference} {sources} {prompt} | {response}"
    reward = JudgeReward(endpoint(), ScoreQuestion(template=template, **knobs))
    right = Case("a", "say ant", {"reference": "ant!", "sources": ["b", 1], "unused": 2})
    assert reward.judge(episodes("ant", case=right)) == pytest.approx([0.875])
    assert list(map(prompt_of, server.requests)) == ['ant! ["b", 1] say ant | ant']
    with pytest.raises(
        ValueError, match=r"(?s)\{reference\}, \{sources\}.*\n  reward: case 'b': has no fact 'sources'"
    ):
        reward.judge(episodes("ant", case=right) + episodes("ant", case=Case("b", "say", {"reference": ""})))
    assert len(server.requests) == 1
    with pytest.raises(ValueError, match="reward: case 'train-ant': has no fact 'reference'"):
        data_of(reward).setup("fit")


def data_of(reward, **knobs):
    return TextDataModule(Say(), tokenizer=WordTokenizer(), prompts=2, replies=2, max_new=1, reward=reward, **knobs)


def test_one_of_many_without_a_score_earns_the_mean(server, endpoint, prompt_of):
    """One of ten replies gets no score and earns the mean of the others, .875; two of ten are an error."""
    answer = judge_of_ants(server, prompt_of)
    server.answer = lambda body: server.chat("", [{"moo": 1.0}]) if prompt_of(body).endswith("cow") else answer(body)
    reward = JudgeReward(endpoint(), question())
    with pytest.warns(UserWarning, match="1 of 10 replies have no score"):
        assert reward.judge(episodes(*["ant"] * 9, "cow")) == pytest.approx([0.875] * 10)
    with pytest.raises(RuntimeError, match="2 of 10 replies have no score: score: no number from 0 to 4"):
        reward.judge(episodes(*["ant"] * 8, "cow", "dog cow"))


def test_a_spent_budget_stops_the_run(server, endpoint, prompt_of):
    server.answer = judge_of_ants(server, prompt_of)
    reward = JudgeReward(endpoint(max_calls=1), question())
    with pytest.raises(TeacherStopped, match="reward: endpoint.max_calls: the budget of 1 calls is spent"):
        reward.judge(episodes("ant", "cow"))


def test_by_default_it_is_the_papers_scale(endpoint):
    default_question = JudgeReward(endpoint()).question
    assert (default_question.low, default_question.high, default_question.expectation, default_question.scale) == (
        1,
        10,
        True,
        (0.0, 1.0),
    )


def test_a_policy_learns_what_the_judge_likes(server, endpoint, prompt_of):
    """The task's rule always gives 0: the policy learns only from the judge."""
    server.answer = judge_of_ants(server, prompt_of)
    knobs = {"task": Say(), "tokenizer": WordTokenizer(), "prompts": 16, "replies": 4, "max_new": 1}
    reward = JudgeReward(endpoint(), question())
    data = TextDataModule(**knobs, reward=reward, evaluation_prompts=2)
    torch.manual_seed(0)
    model = ReinforcePolicy(
        policy=GRUPolicy(8, 8), gamma=1.0, baseline="leave_one_out", optimizer=lambda p: torch.optim.Adam(p, 0.05)
    )
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=20, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["val/return"] == pytest.approx(0.875, abs=1e-5)
    assert trainer.callback_metrics["val/true_reward"] == 0


def test_every_reply_that_is_judged_is_a_feedback_call(server, endpoint, prompt_of):
    """Four training replies count, even if they are cached; evaluation replies do not count."""
    server.answer = judge_of_ants(server, prompt_of)
    for _ in range(2):
        before = len(server.requests)
        reward = JudgeReward(endpoint(), question())
        data = data_of(reward)
        data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.setup("fit")
        torch.manual_seed(0)
        model = ReinforcePolicy(policy=GRUPolicy(8, 8))
        data.collect(model, np.random.default_rng(0))
        data.evaluate(model, np.random.default_rng(0), True)
        assert data.counters["feedback_calls"] == 4
    assert len(server.requests) == before  # the second round is answered from the cache


def test_an_expected_response_that_joins_a_group_is_judged_too(server, endpoint, prompt_of, monkeypatch):
    """Four replies of the policy to two prompts, and the expected response "ant" to one, with a reward at its end."""
    server.answer = judge_of_ants(server, prompt_of)
    monkeypatch.setattr(Say, "expected", lambda self, case: "ant" if case.id.endswith("ant") else None)
    data = data_of(JudgeReward(endpoint(), question()), expected=ExpectedResponses())
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    batch = data.collect(ReinforcePolicy(policy=GRUPolicy(8, 8)), np.random.default_rng(0))
    assert len(batch) == 5 and data.counters["feedback_calls"] == 5 + 1  # judged, and one expected response written
    assert batch.rewards[4, batch.valid[4]].tolist() == pytest.approx([0, 0.875])  # the word, and the end
    data = data_of(JudgeReward(endpoint(), question()), expected=ExpectedResponses(share=0.0, rows=1))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    batch = data.collect(ReinforcePolicy(policy=GRUPolicy(8, 8)), np.random.default_rng(0))
    assert len(batch) == 5 and data.counters["feedback_calls"] == 4 + 1 and not batch.rewards[4].any()


def test_a_dialogue_of_several_rows_is_paid_once():
    """Rows of the episodes 0, 0, none and 1: the second and the fourth row get rewards at their last valid steps."""
    reply = Segment([2, 3], LEARNER)
    batch = as_batch(
        [[Segment([1]), reply], [Segment([1]), reply, Segment([4])], [Segment([1]), reply], [Segment([1]), reply]]
    )
    rewarded = paid_at_the_end(batch, torch.tensor([0, 0, -1, 1]), [0.5, 0.25])
    expected = torch.zeros(4, batch.valid.shape[1])
    expected[1, 1], expected[3, 1] = 0.5, 0.25
    torch.testing.assert_close(rewarded.rewards, expected)
    with pytest.raises(ValueError, match="reward: the judge gave 1 scores for 2 replies"):
        paid_at_the_end(batch, torch.tensor([0, 0, -1, 1]), [0.5])


def test_a_yaml_says_it_all():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=ReplyJudge)
    score = {"low": 0, "high": 9, "expectation": True}
    init_args = {
        "endpoint": {"url": "http://localhost:8000/v1", "model": "judge", "cache": None},
        "question": {"class_path": "data_modules.feedback.providers.ScoreQuestion", "init_args": score},
    }
    config = {"class_path": "data_modules.feedback.providers.JudgeReward", "init_args": init_args}
    reward = parser.instantiate_classes(parser.parse_object({"reward": config})).reward
    assert reward.question.high == 9 and isinstance(reward, ReplyJudge)

"""Direct RLAIF: the judge's expected score is the reward, on the last token of each reply."""

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from data_modules.feedback.providers import JudgeReward, ScoreQuestion
from data_modules.text import ByteTokenizer, TextDataModule, WordTokenizer
from data_modules.text.environment import Case, Outcome
from data_modules.text.rows import LEARNER, Segment, as_batch
from lightning_nlf.batch import Scorer
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ReinforcePolicy

SHORT = "{prompt} | {response}"


class Once:
    def reply(self, text, finished):
        return Outcome(0.0)


class Say:
    """The rule pays nothing; only the judge knows what is good."""

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


@pytest.fixture
def tokenizer():
    return WordTokenizer().fit(Say().corpus())


def question(**knobs):
    return ScoreQuestion(low=0, high=4, expectation=True, template=SHORT, **knobs)


def rows(tokenizer, *said):
    prompt = Segment(tokenizer.encode_prompt("say ant"))
    return as_batch([[prompt, Segment([*tokenizer.encode(text), tokenizer.eos], LEARNER)] for text in said])


def judged(server, prompt_of):
    """Of 0 to 4 an ant has 4 with .75 and 2 with .25, in the mean 3.5; any other word 1."""

    def said(body):
        ant = prompt_of(body).endswith("| ant")
        return server.chat("", [{"4": 0.75, "2": 0.25} if ant else {"1": 1.0}])

    return said


def test_the_expected_score_is_paid_at_the_end(server, endpoint, tokenizer, prompt_of):
    """3.5/4 = .875 on the scale 0 to 1, and 1/4; from −1 to 1 they are .75 and −.5. The same reply is asked once."""
    server.answer = judged(server, prompt_of)
    batch = rows(tokenizer, "ant", "cow dog", "ant")
    reward = JudgeReward(endpoint(), tokenizer, question=question())
    expected = torch.tensor([[0, 0, 0.875, 0], [0, 0, 0, 0.25], [0, 0, 0.875, 0]])
    torch.testing.assert_close(reward.score(batch), expected[:, : batch.valid.shape[1]])
    assert sorted(map(prompt_of, server.requests)) == ["say ant | ant", "say ant | cow dog"]
    assert reward.client.counters["calls"] == 2
    other = JudgeReward(endpoint(), tokenizer, question=question(scale=(-1.0, 1.0)))
    assert other.score(batch).sum(1).tolist() == pytest.approx([0.75, -0.5, 0.75])


def test_a_row_that_nobody_learns_from_earns_nothing(server, endpoint, tokenizer, prompt_of):
    server.answer = judged(server, prompt_of)
    batch = rows(tokenizer, "ant", "cow")
    batch.valid[1] = False
    reward = JudgeReward(endpoint(), tokenizer, question=question())
    assert reward.score(batch).sum(1).tolist() == pytest.approx([0.875, 0]) and len(server.requests) == 1


def test_one_of_many_without_a_score_earns_the_mean(server, endpoint, tokenizer, prompt_of):
    """Ten replies, the cow's has no number: the others' mean is .875. Of two such among ten nothing is paid."""
    answer = judged(server, prompt_of)
    server.answer = lambda body: server.chat("", [{"moo": 1.0}]) if prompt_of(body).endswith("cow") else answer(body)
    reward = JudgeReward(endpoint(), tokenizer, question=question())
    with pytest.warns(UserWarning, match="1 of 10 replies have no score"):
        assert reward.score(rows(tokenizer, *["ant"] * 9, "cow")).sum(1).tolist() == pytest.approx([0.875] * 10)
    with pytest.raises(RuntimeError, match="2 of 10 replies have no score: score: no number from 0 to 4"):
        reward.score(rows(tokenizer, *["ant"] * 8, "cow", "dog cow"))


def test_a_spent_budget_stops_the_run(server, endpoint, tokenizer, prompt_of):
    server.answer = judged(server, prompt_of)
    reward = JudgeReward(endpoint(max_calls=1), tokenizer, question=question())
    with pytest.raises(RuntimeError, match="reward: endpoint.max_calls: the budget of 1 calls is spent"):
        reward.score(rows(tokenizer, "ant", "cow"))


def test_by_default_it_is_the_papers_scale(endpoint, tokenizer):
    asked = JudgeReward(endpoint(), tokenizer).question
    assert (asked.low, asked.high, asked.expectation, asked.scale) == (1, 10, True, (0.0, 1.0))


def test_a_policy_learns_what_the_judge_likes(server, endpoint, prompt_of):
    """The task's rule pays nothing: what is learned comes from the judge, and another tokenizer is refused."""
    server.answer = judged(server, prompt_of)
    knobs = {"task": Say(), "tokenizer": WordTokenizer(), "prompts": 16, "replies": 4, "max_new": 1}
    reward = JudgeReward(endpoint(), WordTokenizer(), Say(), question())
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
    with pytest.raises(ValueError, match="reward: it reads the ids of another tokenizer"):
        TextDataModule(**knobs, reward=JudgeReward(endpoint(), ByteTokenizer())).setup("fit")


def test_every_reply_that_is_judged_is_a_feedback_call(server, endpoint, prompt_of):
    """Four of training, however many were judged before, and none of an evaluation."""
    server.answer = judged(server, prompt_of)
    for _ in range(2):
        before = len(server.requests)
        reward = JudgeReward(endpoint(), WordTokenizer(), Say(), question())
        data = TextDataModule(Say(), tokenizer=WordTokenizer(), prompts=2, replies=2, max_new=1, reward=reward)
        data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.setup("fit")
        torch.manual_seed(0)
        model = ReinforcePolicy(policy=GRUPolicy(8, 8))
        data.collect(model, np.random.default_rng(0))
        data.evaluate(model, np.random.default_rng(0), True)
        assert data.counters["feedback_calls"] == 4
    assert len(server.requests) == before  # all of the second time is in the cache


def test_a_yaml_says_it_all():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Scorer)
    score = {"low": 0, "high": 9, "expectation": True}
    init_args = {
        "endpoint": {"url": "http://localhost:8000/v1", "model": "judge", "cache": None},
        "tokenizer": {"class_path": "data_modules.text.ByteTokenizer"},
        "question": {"class_path": "data_modules.feedback.providers.ScoreQuestion", "init_args": score},
    }
    config = {"class_path": "data_modules.feedback.providers.JudgeReward", "init_args": init_args}
    reward = parser.instantiate_classes(parser.parse_object({"reward": config})).reward
    assert reward.question.high == 9 and reward.tokenizer_digest == ByteTokenizer().fit().digest

"""The toy dialogue: masks, scores, ranks and rewards."""

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.groups import ranks
from data_modules.tasks.tokens import expected_dialogue, paid_by_rank, score_of
from data_modules.text import TokenTaskDataModule
from data_modules.text.rows import LEARNER, Segment, as_batch
from lightning_nlf.batch import Batch
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ImitationPolicy, JointPolicy, ReinforcePolicy, ShapedInjectionPolicy


def test_a_row_knows_prompt_reply_and_environment_apart():
    """Prompt 5 6, reply 5 ., question ?, reply 7 8 9: actions are all tokens but the first; five are valid.

    tokens   5 6 5 0 1 7 8 9
    actions    6 5 0 1 7 8 9
    valid      . x x . x x x
    """
    replies = [Segment([5, 0], LEARNER, [-1.0, -2.0], 0.5), Segment([7, 8, 9], LEARNER, [-3.0, -4.0, -5.0], 0.0)]
    row = as_batch([[Segment([5, 6]), replies[0], Segment([1]), replies[1]]])
    assert row.obs.tolist() == [[5, 6, 5, 0, 1, 7, 8]] and row.actions.tolist() == [[6, 5, 0, 1, 7, 8, 9]]
    assert row.valid.int().tolist() == [[0, 1, 1, 0, 1, 1, 1]]
    assert row.log_probs.tolist() == [[0, -1, -2, 0, -3, -4, -5]]
    assert row.rewards.tolist() == [[0, 0, 0.5, 0, 0, 0, 0]]
    assert row.terminated.all() and not row.expert_mask.any()


@pytest.mark.parametrize(("reply", "score"), [([4, 0], 0.5), ([4, 4, 0], 0.25), ([4], 0.25), ([3, 0], 0), ([0], 0)])
def test_scores(reply, score):
    assert score_of(reply, 4) == score


def test_the_expected_dialogue_scores_everything_and_is_imitated_only():
    row = as_batch([expected_dialogue([7, 3, 5])])
    assert row.obs.tolist() == [[7, 3, 5, 7, 0, 1, 5]] and row.actions[0, -1] == 0
    assert row.rewards.sum() == 1
    assert not row.mask.any() and torch.equal(row.expert_mask, row.valid) and row.valid.sum() == 4


def test_ranks_and_what_they_pay():
    """Scores 1, .5, .5, 0 in one group: ranks 0 1 1 3; rewards 3/3, (1+½)/3, (1+½)/3, 0. In another group a tie, ½."""
    score, group = torch.tensor([1, 0.5, 0.5, 0, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    rank = ranks(score, group)
    assert rank.tolist() == [0, 1, 1, 3, 0, 0]
    valid = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()
    zeros = torch.zeros(6, 3)
    rewards = paid_by_rank(
        Batch(obs=zeros, actions=zeros, valid=valid, mask=valid, rewards=zeros, group=group, rank=rank)
    )
    assert rewards.sum(1).tolist() == [1, 0.5, 0.5, 0, 0.5, 0.5]
    assert [int(row.argmax()) for row in rewards if row.any()] == [0, 1, 2, 0, 2]  # at the last valid step


def fitted(module, data, epochs):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, data)
    return data


def score_of_policy(module, data):
    rows = data.evaluate(module, np.random.default_rng(5), deterministic=False)
    return float(rows.rewards.sum(1).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "task"),
    [
        (lambda **kw: ReinforcePolicy(baseline="group_mean", gamma=1.0, **kw), {}),
        (
            lambda **kw: ReinforcePolicy(gamma=1.0, entropy_weight=0.1, **kw),
            {"feedback": "comparison", "replies": 2, "prompts": 128, "minibatches": 4},
        ),
        (lambda **kw: ImitationPolicy(divergence="nll", **kw), {"expected_share": 1.0}),
        (lambda **kw: JointPolicy(baseline="leave_one_out", divergence="nll", **kw), {"expected_share": 0.25}),
        (lambda **kw: ShapedInjectionPolicy(relative=False, gamma=1.0, **kw), {"expected_share": 0.25}),
    ],
    ids=["score", "pairs", "expected", "joint", "shaped"],
)
def test_the_objectives_of_the_pendulum_learn_it(make, task):
    """Untrained dialogues score about .05 (the right symbol once in 12); each kind of feedback doubles that."""
    torch.manual_seed(0)
    module = make(policy=GRUPolicy(vocabulary=12, width=48), optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01))
    data = TokenTaskDataModule(**({"prompts": 32, "replies": 4, "evaluation_prompts": 512} | task))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    before = score_of_policy(module, data)
    fitted(module, data, 40 if data.feedback == "score" else 100)
    assert before < 0.07 and score_of_policy(module, data) > 0.13
    assert data.counters["feedback_calls"] > 0 and data.counters["env_steps"] > 0


def test_every_kind_of_feedback_is_counted():
    """8 prompts × 4 replies: 32 scores or 8 comparisons; expected dialogues of 2 prompts are 2 calls and 8 labels."""
    for task, calls, labels in (
        ({}, 32, 0),
        ({"feedback": "comparison"}, 8, 0),
        ({"expected_share": 0.25}, 34, 8),
    ):
        module = ReinforcePolicy(policy=GRUPolicy(vocabulary=12, width=8))
        data = fitted(module, TokenTaskDataModule(prompts=8, replies=4, **task), 1)
        assert (data.counters["feedback_calls"], data.counters["labels"]) == (calls, labels)


def test_people_can_read_a_transcript(tmp_path):
    module = ReinforcePolicy(policy=GRUPolicy(vocabulary=12, width=8))
    data = fitted(module, TokenTaskDataModule(prompts=4, replies=2), 1)
    data.evaluate(module, np.random.default_rng(0), deterministic=True)
    (path,) = data.exhibits(tmp_path)
    lines = path.read_text().splitlines()
    assert len(lines) == 22 and lines[0].count("|") == lines[2].count("|") == 5

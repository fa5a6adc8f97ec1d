"""Expected responses: which prompts have one, which rows learn from them, and how they are counted."""

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.label_buffer import LabelBuffer
from data_modules.text import ExpectedDataModule, SourcedAnswers, TextDataModule, WordTokenizer
from data_modules.text.expected import ExpectedResponses, PlacedResponse, with_expected
from lightning_nlf.experts import PolicyTextExpert
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import (
    ImitationPolicy,
    JointPolicy,
    ReinforcePolicy,
    ShapedInjectionPolicy,
    WeightedInjectionPolicy,
)

SIZE = 15  # ids: twelve words and three special tokens


def network(seed=0):
    torch.manual_seed(seed)
    policy = GRUPolicy(vocabulary=SIZE, width=16)
    with torch.no_grad():
        policy.head.weight *= 3
        policy.head.bias[1] += 2.5
    return policy


def agent(kind=ReinforcePolicy, seed=0, **kw):
    return kind(policy=network(seed), optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01), **kw)


def module(task, expected, **kw):
    settings = {"tokenizer": WordTokenizer(), "prompts": 3, "replies": 2, "max_new": 4, "expected": expected}
    data = TextDataModule(task, **(settings | kw))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, seed=3):
    return data.collect(agent(), np.random.default_rng(seed))


def fitted(actor, data, epochs=2, **kw):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(actor, data, **kw)
    return trainer


def names(data, batch):
    """The words that the rows' prompts ask for."""
    return [data.tokenizer.decode([int(i)]) for i in batch.obs[:, 1]]


def test_rows_say_that_they_are_expected_wherever_they_stand(echo):
    data = module(echo, ExpectedResponses(share=0, rows=2))
    prompts = data.cases["train"][:2]
    placed = data.expected.draw(prompts, 2, np.random.default_rng(0))
    episodes = data.conversation.play(agent(), prompts, np.zeros((2, 1), dtype=np.int64))
    batch, of = data.conversation.batch(episodes, [response.response.row for response in placed])
    assert of.tolist() == [0, 1, -1, -1]
    order = torch.tensor([2, 0, 3, 1])
    settled = data.expected.mask_labels(batch[order], placed, of[order] < 0)
    assert settled.valid.any(1).tolist() == [False, True, False, True]


# ---- choice of prompts


def test_a_larger_pool_holds_the_smaller_and_the_order_decides_alone():
    task = SourcedAnswers()
    pools = {count: [case.id for case, _ in with_expected(task, count, 5)] for count in (32, 128, None)}
    assert [len(pool) for pool in pools.values()] == [32, 128, 1936]
    assert pools[128][:32] == pools[32] and pools[None][:128] == pools[128]
    second = [case.id for case, _ in with_expected(task, 32, 6)]
    assert len(set(second) & set(pools[32])) < 10
    assert {case.id for case, _ in with_expected(SourcedAnswers(), 32, 5)} == set(pools[32])


def test_fine_tuning_sees_the_same_responses_as_a_joint_run():
    """With the same number and order, whatever the seeds; all other prompts' responses are held out."""
    task = SourcedAnswers()
    tuning = ExpectedDataModule(task, WordTokenizer(), prompts=32, order=5, seed=1)
    tuning.setup("fit")
    joint = TextDataModule(task, tokenizer=WordTokenizer(), expected=ExpectedResponses(prompts=32, order=5), replies=1)
    joint.setup("fit")
    imitated = {(*response.prompt_ids, *response.reply_ids) for response in tuning.demonstrations["train"]}
    responses = {tuple(i for part in response.row for i in part.ids) for response in joint.expected.responses.values()}
    assert len(imitated) == 32 and imitated == responses
    assert len(tuning.demonstrations["val"]) == 628 and tuning.tokenizer_digest == joint.tokenizer_digest
    case = task.cases("val")[7]
    assert tuning.demonstrations["val"][7].reply == task.expected(case)


def test_only_prompts_of_the_pool_have_one(echo):
    data = module(echo, ExpectedResponses(prompts=2), prompts=4)
    batch = collected(data)
    pool = {name.removeprefix("train-") for name in data.expected.responses}
    assert len(pool) == 2 and set(names(data, batch[torch.arange(8, 10)])) == pool and len(batch) == 10
    first = dict(zip(batch.group.tolist(), names(data, batch), strict=False))
    for row in (8, 9):
        assert first[int(batch.group[row])] == names(data, batch)[row]


def test_a_share_is_of_the_prompts_of_the_collection(echo):
    for share, rows in ((0.5, 2), (1.0, 4)):
        assert len(collected(module(echo, ExpectedResponses(share=share), prompts=4))) == 8 + rows


# ---- rows drawn from all expected responses


def test_drawn_rows_are_labels_and_nothing_else(echo):
    data = module(echo, ExpectedResponses(prompts=3, share=0.0, rows=2))
    batch = collected(data)
    assert len(batch) == 8 and batch.group.tolist()[6:] == [3, 4]
    assert batch.expert_mask[6:].any(1).all() and not batch.valid[6:].any() and (batch.rewards[6:] == 0).all()
    samples = [set(names(data, collected(data, seed)[torch.arange(6, 8)])) for seed in range(8)]
    pool = {name.removeprefix("train-") for name in data.expected.responses}
    assert set().union(*samples) == pool and all(len(sample) == 2 for sample in samples)


@pytest.mark.parametrize("kind", [JointPolicy, ShapedInjectionPolicy])
def test_without_imitation_drawn_rows_change_nothing(kind, echo):
    """The same tokens are sampled, and only imitation reads the labels."""
    knobs = {"imitation_weight": 0.0, "divergence": "nll"} if kind is JointPolicy else {"relative": False}
    plain, joint = agent(), agent(kind, **knobs)
    fitted(plain, module(echo, None))
    fitted(joint, module(echo, ExpectedResponses(share=0.0, rows=3)))
    for weight, expected in zip(joint.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, expected)


def test_imitation_is_of_the_drawn_rows(echo):
    """−log π of their tokens, as a mean over tokens."""
    actor, data = agent(JointPolicy, divergence="nll"), module(echo, ExpectedResponses(share=0.0, rows=3))
    batch = actor.prepare(data.collect(actor, np.random.default_rng(0)))
    labels = batch.expert_mask.nonzero()
    assert set(labels[:, 0].tolist()) == {6, 7, 8}
    nll = -actor.policy(batch.obs).log_prob(batch.actions)[batch.expert_mask]
    torch.testing.assert_close(actor.losses(batch)["imitation"], nll.mean())


def test_nobody_pays_for_what_is_imitated_only(echo):
    """Of 6 replies, 3 joined responses and 2 drawn ones, a judge scores the first 9."""

    class Judge:
        def score(self, batch):
            self.count = int(batch.valid.any(1).sum())
            return torch.zeros(batch.valid.shape)

    judge = Judge()
    collected(module(echo, ExpectedResponses(rows=2), reward=judge))
    assert judge.count == 6 + 3


def test_whether_there_are_groups_is_a_matter_of_the_knobs(echo):
    """One of four prompts has a response, so a collection of one reply may or may not have one."""
    data = module(echo, ExpectedResponses(prompts=1), prompts=1, replies=1)
    batches = [collected(data, seed) for seed in range(8)]
    assert {len(batch) for batch in batches} == {1, 2}
    assert all(batch.group.tolist() == [0] * len(batch) for batch in batches)


# ---- log-probabilities


def test_another_may_stand_for_the_teachers_density(echo):
    """By default the teacher is certain, and a ratio to that is an error."""
    expert = PolicyTextExpert(network(7))
    certain, declared = (
        collected(module(echo, ExpectedResponses(as_if=stand_in, rows=1), prompts=3)) for stand_in in (None, expert)
    )
    joined = torch.arange(10)[:, None].expand_as(certain.valid).clamp(max=9)
    joined = certain.valid & (joined > 5) & (joined < 9)
    assert joined.sum() == 6 and (certain.log_probs[joined] == torch.inf).all()
    with torch.no_grad():
        log_probs = expert.policy(declared.obs).log_prob(declared.actions)
    torch.testing.assert_close(declared.log_probs[joined], log_probs[joined], rtol=0, atol=1e-4)
    assert torch.equal(declared.log_probs[declared.mask], certain.log_probs[certain.mask])
    with pytest.raises(ValueError, match="as_if"):
        agent(WeightedInjectionPolicy).prepare(certain)
    agent(WeightedInjectionPolicy).prepare(declared)


# ---- counters


def test_the_teacher_is_asked_once_for_each(echo):
    """Four prompts with responses of two tokens; later collections count nothing new."""
    data = module(echo, ExpectedResponses(rows=2), prompts=2)
    counted = []
    for seed in range(12):
        batch = collected(data, seed)
        counted.append((data.counters["labels"], data.counters["feedback_calls"] - 4 * (seed + 1)))
        assert int(batch.expert_mask.sum()) == 8
    first = {(2 * n, n) for n in (2, 3, 4)}
    assert counted[0] in first and counted[-1] == (8, 4) and counted == sorted(counted)


def test_what_two_ranks_ask_for_is_asked_for_once(echo):
    """This rank has responses 0, 1 and 1 again, the other has 1 and 2: three responses of two tokens; then none."""
    expected = module(echo, ExpectedResponses()).expected
    responses = list(expected.responses.values())
    placed = [
        PlacedResponse(responses[0], 0, True),
        PlacedResponse(responses[1], 1, True),
        PlacedResponse(responses[1], 2, False),
    ]
    second_rank = torch.tensor([0.0, 1, 1, 0])
    places, calls, tokens = expected.new(placed, lambda mine: mine + second_rank)
    assert (sorted(places), calls, tokens) == ([0, 2], 3, 6)
    assert expected.new(placed, lambda mine: mine + second_rank) == ([], 0, 0)


def test_a_buffer_keeps_each_response_once(echo):
    data = module(echo, ExpectedResponses(prompts=3, rows=2), label_buffer=LabelBuffer(updates=2, rows=3), prompts=4)
    for seed in range(6):
        collected(data, seed)
    rows = data.label_buffer.labels
    assert sorted(names(data, rows)) == sorted(name.removeprefix("train-") for name in data.expected.responses)
    assert not rows.valid.any() and rows.group is None and (rows.expert_mask.sum(1) == 2).all()


@pytest.mark.parametrize(
    ("kind", "expected", "knobs"),
    [
        (JointPolicy, {"prompts": 2, "rows": 2}, {"divergence": "nll", "baseline": "group_mean"}),
        (ShapedInjectionPolicy, {"share": 0.5}, {"relative": False, "baseline": "shared_group_mean"}),
    ],
)
def test_a_run_that_is_resumed_ends_alike(kind, expected, knobs, echo, tmp_path):
    def new_data():
        buffer = LabelBuffer(updates=2, rows=2) if kind is JointPolicy else None
        return module(echo, ExpectedResponses(**expected), minibatches=2, label_buffer=buffer)

    straight, data = agent(kind, **knobs), new_data()
    fitted(straight, data, epochs=4)
    fitted(agent(kind, **knobs), new_data()).save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, again = agent(kind, seed=1, **knobs), new_data()
    fitted(resumed, again, epochs=4, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for weight, reference in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(weight, reference, rtol=0, atol=0)
    assert again.counters == data.counters and data.counters["labels"] > 0


def test_fine_tuning_on_few_learns_them(echo):
    data = ExpectedDataModule(echo, WordTokenizer(), prompts=2, passes=30)
    actor = agent(ImitationPolicy, divergence="nll")
    fitted(actor, data, epochs=4)
    for row in data.demonstrations["train"]:
        reply, *_ = actor.reply(
            torch.tensor(row.prompt_ids)[None], torch.tensor([len(row.prompt_ids)]), stop=(1,), max_new=4,
            deterministic=True,
        )  # fmt: skip
        assert reply[0].tolist() == row.reply_ids.tolist()


# ---- errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": 0}, "expected.prompts: got 0"), ({"share": 2}, "expected.share"), ({"rows": -1}, "expected.rows"),
        ({"share": 0.0}, "expected.share: share and rows are both 0"), ({"prompts": 5}, "prompts: got 5, .*has 4"),
        ({"prompts": 2, "rows": 3}, "expected.rows: got 3"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(echo, wrong, message):
    with pytest.raises(ValueError, match=message):
        module(echo, ExpectedResponses(**wrong))


def test_who_has_no_expected_responses_is_refused(echo, walks):
    with pytest.raises(ValueError, match="expected: .*Walks has 3"):
        module(walks, ExpectedResponses())
    with pytest.raises(ValueError, match="label_buffer"):
        module(echo, None, label_buffer=LabelBuffer())
    with pytest.raises(ValueError, match="prompts: got 0"):
        ExpectedDataModule(echo, WordTokenizer(), prompts=0)
    with pytest.raises(ValueError, match="prompts: got 9, .*has 4"):
        ExpectedDataModule(echo, WordTokenizer(), prompts=9).setup("fit")

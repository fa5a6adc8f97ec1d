"""Labels: an expert's distribution on the learner's own tokens."""

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.takeover import Geometric
from data_modules.text import Injection, TextDataModule, WordTokenizer
from data_modules.text.expected import ExpectedResponses
from lightning_nlf.experts import PolicyTextExpert
from lightning_nlf.maths.means import masked_mean
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import JointPolicy
from lightning_nlf.objectives.imitation import imitation_loss

SIZE = 15  # ids: twelve words and three special tokens


def network(seed):
    torch.manual_seed(seed)
    policy = GRUPolicy(vocabulary=SIZE, width=16)
    with torch.no_grad():
        policy.head.weight *= 8  # the tokens of an untrained head are nearly equally likely
    return policy


def joint(**knobs):
    return JointPolicy(policy=network(0), optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02), **knobs)


def module(task, **kw):
    settings = {"tokenizer": WordTokenizer(), "prompts": 4, "replies": 3, "max_new": 4}
    data = TextDataModule(task, **(settings | {"labeller": PolicyTextExpert(network(7))} | kw))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, actor, seed=0):
    torch.manual_seed(seed)
    return data.collect(actor, np.random.default_rng(seed))


def everything(echo):
    """Rows of the learner, of an expert that takes over, of expected responses, and of labels only."""
    taking = Injection(PolicyTextExpert(network(8)), Geometric(0.5))
    return module(echo, injection=taking, expected=ExpectedResponses(rows=2, prompts=3))


def test_every_step_has_the_labellers_distribution(echo):
    data, actor = everything(echo), joint()
    batch = collected(data, actor)
    assert len(batch) == 12 + 3 + 2 and torch.equal(batch.expert_mask[:15], batch.valid[:15])
    assert (batch.expert_mask.any(1)).all() and not batch.valid[15:].any()
    with torch.no_grad():
        expert_logits = data.labeller.policy(batch.obs).logits
    is_label = batch.expert_mask
    torch.testing.assert_close(batch.expert_params["logits"][is_label], expert_logits[is_label], rtol=0, atol=1e-5)
    assert (batch.expert_params["logits"][~is_label] == 0).all()


def test_what_an_expert_said_stays_and_the_learners_words_are_no_examples(echo):
    """On the learner's tokens the example is sampled from the labeller: its mean loss is the labeller's entropy."""
    data = everything(echo)
    batch = collected(data, joint())
    theirs = batch.expert_mask & ~batch.mask
    assert torch.equal(batch.expert_actions[theirs], batch.actions[theirs])
    examples, logits = batch.expert_actions[batch.mask], batch.expert_params["logits"][batch.mask]
    assert (examples != batch.actions[batch.mask]).float().mean() > 0.5
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    example_loss, action_loss = (
        -logits.gather(1, tokens[:, None]).mean() for tokens in (examples, batch.actions[batch.mask])
    )
    assert abs(example_loss - entropy) < 0.5 and action_loss > entropy + 1


def test_the_joint_loss_is_the_divergence_on_the_learners_own_words(echo):
    """E KL(expert ‖ policy), summed by hand over the vocabulary."""
    actor, data = joint(divergence="forward"), module(echo)
    batch = actor.prepare(collected(data, actor))
    with torch.no_grad():
        p, q = (policy(batch.obs).logits for policy in (data.labeller.policy, actor.policy))
    by_hand = (p.exp() * (p - q)).sum(-1)[batch.mask].mean()
    torch.testing.assert_close(actor.losses(batch)["imitation"], by_hand)


def test_labels_are_counted(echo):
    data = module(echo)
    batch = collected(data, joint())
    assert data.counters["labels"] == int(batch.mask.sum()) and data.counters["expert_steps"] == 0
    data = everything(echo)
    batch = collected(data, joint())
    injected = int((batch.valid & ~batch.mask)[:12].sum())
    assert data.counters["labels"] == int(batch.mask.sum()) + injected + 3 * 2  # expected responses of two tokens


@pytest.mark.slow
def test_the_policy_becomes_the_labeller(echo):
    actor = joint(divergence="forward", imitation_weight=5.0)
    data = module(echo, prompts=8)

    def apart():
        batch = collected(data, actor)
        distance = imitation_loss(batch, actor.evaluate(batch), "forward")
        return float(masked_mean(distance, batch.expert_mask).detach())

    before = apart()
    L.Trainer(
        accelerator="cpu", max_epochs=60, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    ).fit(actor, data)  # fmt: skip
    assert before > 0.5 and apart() < before / 3


def test_a_labeller_that_knows_more_tokens_is_refused_by_a_divergence(echo):
    torch.manual_seed(0)
    larger = PolicyTextExpert(GRUPolicy(vocabulary=SIZE + 3, width=16))
    data, actor = module(echo, labeller=larger), joint(divergence="forward")
    batch = actor.prepare(collected(data, actor))
    with pytest.raises(ValueError, match="vocabulary: the expert has 18 token ids, but the policy has 15"):
        actor.losses(batch)


def test_a_labeller_of_other_ids_and_a_task_of_turns_are_refused(echo, walks):
    with pytest.raises(ValueError, match="labeller: .*Walks has 3"):
        module(walks)
    expert = PolicyTextExpert(network(7))
    expert.policy.tokenizer_digest = "another"
    with pytest.raises(ValueError, match="labeller: the model was trained with a different tokenizer"):
        TextDataModule(echo, tokenizer=WordTokenizer(), labeller=expert).setup("fit")

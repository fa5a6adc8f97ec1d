"""One decision per reply: the gradient of the token form, as a mean over replies instead of tokens."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf import objectives
from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.networks import GRUPolicy, GRUValue
from lightning_nlf.objectives import ActorCriticAgent, OneStepRLHFPolicy, ReinforcePolicy
from lightning_nlf.objectives.policy_gradient import at_first, first_step, importance_ratio

VOCABULARY = 7


def build(kind, **knobs):
    torch.manual_seed(0)
    critic = {"value": GRUValue(VOCABULARY, 8)} if issubclass(kind, ActorCriticAgent) else {}
    return kind(policy=GRUPolicy(VOCABULARY, 8), gamma=1.0, **critic, **knobs)


def one_step(kind=ReinforcePolicy, **knobs):
    """A policy whose decisions are whole replies. The baseline of an actor-critic is V of the prompt."""
    return build(kind, decision="reply", **knobs)


def replies(lengths=(3, 5, 2), seed=0, **fields):
    """Replies to prompts of two tokens, with the reward on the last token."""
    generator = torch.Generator().manual_seed(seed)
    width = 1 + max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width + 1), generator=generator)
    steps, ends = torch.arange(width), 1 + torch.tensor(lengths)[:, None]
    valid = (steps >= 1) & (steps < ends)
    rows = Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        log_probs=-2 + 0.2 * torch.randn(valid.shape, generator=generator),
        rewards=torch.where(steps == ends - 1, torch.randn(len(lengths), 1, generator=generator), 0),
        final_obs=ids.gather(1, ends)[:, 0],
        terminated=torch.ones(len(lengths), dtype=torch.bool),
        group=torch.zeros(len(lengths), dtype=torch.long),
    )
    return replace(rows, **fields)


def terms_of(module, batch):
    prepared = module.prepare(batch)
    return module.losses(prepared, module.evaluate(prepared))


def gradient_of(module, batch):
    sum(terms_of(module, batch).values()).backward()
    return torch.cat([p.grad.flatten() for p in module.policy.parameters()])


def test_a_reply_at_its_first_step_by_hand():
    """Tokens 1 + 2 of the first row and 4 of the second; the third has none. Over all tokens: 12 and 22."""
    x = torch.tensor([[9.0, 1, 2], [9, 9, 4], [9, 9, 9]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool()
    assert first_step(mask).tolist() == [[False, True, False], [False, False, True], [False] * 3]
    assert at_first(x, mask, mask).tolist() == [[0, 3, 0], [0, 0, 4], [0, 0, 0]]
    assert at_first(x, mask, torch.ones_like(mask)).tolist() == [[0, 12, 0], [0, 0, 22], [0, 0, 0]]


@pytest.mark.parametrize("baseline", ["none", "group_mean", "leave_one_out"])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_the_gradient_is_that_of_the_token_form(baseline, entropy_weight):
    """γ = 1, reward at the end: Σ_t ∇log π_t · A = ∇log π(reply) · A. 10 tokens in 3 replies: ⅓ instead of ⅒."""
    knobs = {"baseline": baseline, "entropy_weight": entropy_weight, "normalize_advantages": False}
    whole = gradient_of(one_step(**knobs), replies())
    tokens = gradient_of(build(ReinforcePolicy, **knobs), replies())
    torch.testing.assert_close(whole * 3, tokens * 10)
    assert tokens.norm() > 0.01


def test_rewards_on_the_way_are_the_replies():
    """Reward 1 on each of 3, 5 and 2 tokens: returns 3, 5, 2, and −⅓, 5/3, −4/3 after subtracting their mean."""
    batch = replies()
    batch = replace(batch, rewards=batch.valid.float())
    prepared = one_step(baseline="batch_mean", normalize_advantages=False).prepare(batch)
    assert prepared.advantages[first_step(batch.mask)].tolist() == pytest.approx([-1 / 3, 5 / 3, -4 / 3])


def test_what_the_tokens_were_is_kept():
    batch = replies()
    prepared = one_step().prepare(batch)
    for name in ("valid", "mask", "rewards", "terminated", "log_probs"):
        assert torch.equal(getattr(prepared, name), getattr(batch, name)), name


def test_a_reply_is_one_step_to_schedules():
    """Three replies, two of them by the learner."""
    batch = replies()
    module = one_step()
    module.prepare(replace(batch, mask=batch.mask & torch.tensor([[True], [False], [True]])))
    assert module.experience == 2


def test_the_ratio_is_that_of_the_reply():
    """Clip .2 around Π_t π/π_old."""
    module = one_step(clip=0.2, normalize_advantages=False)
    batch = module.prepare(replies())
    now = module.evaluate(batch)
    per_token = importance_ratio(now.log_probs, batch.log_probs, batch.mask)
    ratio = per_token.prod(1)  # 1 outside the mask
    advantages = batch.advantages[first_step(batch.mask)]
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    torch.testing.assert_close(module.losses(batch, now)["policy"], expected)
    assert module.figures(batch, now)["clip_fraction"] == pytest.approx(float(((ratio - 1).abs() > 0.2).float().mean()))


def test_the_critic_is_asked_at_the_prompt():
    """V of the first step of each reply, with a loss that is a mean over replies."""
    module = one_step(ActorCriticAgent, normalize_advantages=False, value_weight=1.0)
    batch = replies()
    prepared = module.prepare(batch)
    first = first_step(batch.mask)
    values = module.value(batch.obs, first)
    scores = batch.rewards.sum(1)
    torch.testing.assert_close(prepared.advantages[first], scores - values)
    loss = module.losses(prepared, module.evaluate(prepared))["value"]
    torch.testing.assert_close(loss, 0.5 * ((values - scores) ** 2).mean())


def test_nothing_follows_a_reply_that_was_cut_off():
    cut = replies(terminated=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(
        one_step(ActorCriticAgent).prepare(cut).advantages, one_step(ActorCriticAgent).prepare(replies()).advantages
    )


def test_the_penalty_of_all_tokens_is_the_replies():
    """β = .5: d = 1, −.5 of the first reply, .5 of the second; scores 3, 1 → 2.75, .75."""
    batch = replies(
        (2, 1),
        rewards=torch.tensor([[0, 0, 3.0], [0, 1, 0]]),
        log_probs=torch.tensor([[0, -1, -2.0], [0, -3, 0]]),
        ref_log_probs=torch.tensor([[0, -2, -1.5], [0, -3.5, 0]]),
    )
    prepared = build(OneStepRLHFPolicy, beta=0.5, normalize_advantages=False).prepare(batch)
    assert prepared.advantages[first_step(batch.mask)].tolist() == pytest.approx([2.75, 0.75])


@pytest.mark.parametrize("kind", [ReinforcePolicy, ActorCriticAgent])
def test_cut_into_parts_the_loss_is_that_of_the_whole(kind):
    """Parts of two replies and one: the mean over the parts is the mean over the replies."""
    module = one_step(kind)
    prepared = module.prepare(replies())
    expected = module.losses(prepared, module.evaluate(prepared))
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    parts = stamp_totals([prepared[:2], prepared[2:]], totals, 2)
    for name, whole in expected.items():
        mean = sum(module.losses(part, module.evaluate(part))[name] for part in parts) / 2
        torch.testing.assert_close(mean, whole)


@pytest.mark.parametrize(
    ("kind", "knobs", "name"),
    [
        ("ReinforcePolicy", {"cut_at_takeover": True}, "cut_at_takeover"),
        ("ReinforcePolicy", {"baseline": "shared_group_mean"}, "shared_group_mean"),
        ("UnweightedInjectionPolicy", {}, "injection"),
        ("RLSDPolicy", {}, "evidence_weight"),
        ("SRPOPolicy", {}, "success"),
        ("MixedFeedbackPolicy", {"divergence": "nll"}, "scored_steps"),
        ("JointPolicy", {"suffix_temperature": 0.5}, "suffix_temperature"),
    ],
)
def test_what_is_about_tokens_is_refused(kind, knobs, name, text):
    """Its terms would be 0, or use the first token only."""
    with pytest.raises(ValueError, match=f"decision: reply .*{name}"):
        getattr(objectives, kind)(policy=text.gru_policy(), decision="reply", **knobs)
